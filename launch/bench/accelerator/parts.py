"""The parts of the benchmark: each is a process of its own, with a share of the time."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from launch.bench.accelerator.record import Record
from launch.bench.accelerator.sizes import Sizes

PACKAGE = "launch.bench.accelerator"
FAIL = "fail"  # a section that always fails, for tests


@dataclass(frozen=True)
class Part:
    """One process. Its name is that of its section, and of what it measures of it."""

    name: str
    share: float  # of the time: seconds, if there are enough for all
    on_cpu: bool = False  # whether jax must leave the accelerator alone
    # Whether programs come from and go to the cache on disk, which does not suit many threads.
    cached: bool = True
    needed_by: str = ""  # another section that reads its results

    @property
    def case(self) -> int | None:
        """The number of the training case."""
        return int(self.name.partition(".")[2]) if self.section == "training" else None

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    def file(self, directory: Path) -> Path:
        return results_directory(directory) / f"{self.name}.json"


# In the order in which they run: what is worth most comes first.
PARTS = (
    Part("right", 55, cached=False),
    Part("peaks", 22),
    Part("first_token.compressed", 110),
    Part("first_token.warm", 15),
    Part("training.0", 60, needed_by="beside_torch"),
    Part("training.1", 50, needed_by="beside_torch"),
    Part("beside_torch.ours", 25),
    Part("beside_torch.torch", 50, on_cpu=True),
    Part("decoding", 30),
    Part("first_token.text", 25),
    Part("training.2", 35),
    Part("learning", 50),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))


def results_directory(directory: Path) -> Path:
    return directory / "results"


def choose_parts(sections: tuple[str, ...], cases: int) -> list[Part]:
    """The parts of these sections, of so many training cases.

    Raises ValueError for a section that is not known.
    """
    unknown = [name for name in sections if name not in (*SECTIONS, FAIL)]
    if unknown:
        raise ValueError(
            f"expected --sections of {', '.join(SECTIONS)}, got {', '.join(unknown)}; "
            "separate them with commas"
        )
    chosen = [part for part in PARTS if part.section in sections or part.needed_by in sections]
    chosen = [part for part in chosen if part.case is None or part.case < cases]
    return [*([Part(FAIL, 5)] if FAIL in sections else []), *chosen]


def module_of(name: str) -> str:
    """The module that measures a part."""
    known = {"beside_torch.ours": "beside_ours", "beside_torch.torch": "beside_torch"}
    return f"{PACKAGE}.{known.get(name, name.partition('.')[0])}"


def read_modules(name: str):
    """Imports what a part needs, torch included, but uses no device."""
    if name == FAIL:
        return
    module = import_module(module_of(name))
    if hasattr(module, "read_modules"):
        module.read_modules()


def run_part(name: str, sizes: Sizes, record: Record, directory: Path):
    """Measures everything of a part."""
    section, _, rest = name.partition(".")
    if section == FAIL:
        raise RuntimeError("this section fails on purpose")
    module = import_module(module_of(name))
    if section == "first_token":
        measure = {
            "compressed": module.run_compressed,
            "text": module.run_uncompressed,
            "warm": partial(module.run_warm, results=results_directory(directory)),
        }
        measure[rest](sizes, record)
    elif section == "training":
        module.run(sizes, record, int(rest))
    elif section == "beside_torch":
        exchange, results = directory / "exchange", results_directory(directory)
        module.run(sizes, record, exchange, *([results] if rest == "ours" else []))
    elif section == "learning":
        module.run(sizes, record, directory / "learning")
    else:
        module.run(sizes, record)
