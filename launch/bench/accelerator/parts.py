"""Parts of the benchmark; each is a process of its own with a share of the time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from launch.bench.accelerator.record import Record
from launch.bench.accelerator.sizes import Sizes

PACKAGE = "launch.bench.accelerator"
FAIL = "fail"  # a section that always fails, for tests


@dataclass(frozen=True)
class Part:
    """A process. Its name is SECTION, or SECTION.DETAIL if a section has several parts."""

    name: str
    share: float  # weight in dividing the time; seconds when all parts run in eight minutes
    on_cpu: bool = False  # jax must not use the accelerator
    # Use the compilation cache on disk. Threads that write to it at the same time broke entries.
    cached: bool = True
    needed_by: str = ""  # another section that reads its results

    @property
    def case(self) -> int | None:
        """Number of the training case, None for other sections."""
        return int(self.name.partition(".")[2]) if self.section == "training" else None

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    def file(self, directory: Path) -> Path:
        return results_directory(directory) / f"{self.name}.json"


# Parts that share a process, and with it a model's weights and programs: their names and their
# shares of the time. Each writes a file of results.
SERVING = {
    "first_token.compressed": 72,
    "decoding": 40,
    "beside_torch.serving": 8,
    "peaks": 25,
}
# In the order in which they run, the most important first.
PARTS = (
    Part("right", 85, cached=False),
    Part("serving", 140, needed_by="beside_torch"),
    Part("training.0", 85, needed_by="beside_torch"),
    Part("training.1", 70, needed_by="beside_torch"),
    Part("beside_torch.ours", 5, on_cpu=True),
    Part("beside_torch.torch", 40, on_cpu=True),
    Part("warm", 15),
    Part("text", 20),
    Part("training.2", 35),
    Part("learning", 40),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))


def results_directory(directory: Path) -> Path:
    return directory / "results"


def choose_parts(sections: tuple[str, ...], cases: int) -> list[Part]:
    """Return the parts with these sections or names, for `cases` training cases.

    Raises ValueError for an unknown section.
    """
    names = [part.name for part in PARTS]
    unknown = [name for name in sections if name not in (*SECTIONS, *names, FAIL)]
    if unknown:
        raise ValueError(
            f"expected --sections of {', '.join(SECTIONS)}, got {', '.join(unknown)}; "
            "separate them with commas"
        )
    chosen = [part for part in PARTS if {part.section, part.name, part.needed_by} & {*sections}]
    chosen = [part for part in chosen if part.case is None or part.case < cases]
    return [*([Part(FAIL, 5)] if FAIL in sections else []), *chosen]


def module_of(name: str) -> str:
    """Return the name of the module that measures a part."""
    known = {
        "beside_torch.ours": "beside_ours",
        "beside_torch.serving": "beside_ours",
        "beside_torch.torch": "beside_torch",
        "serving": "first_token",
        "text": "first_token",
        "warm": "first_token",
    }
    return f"{PACKAGE}.{known.get(name, name.partition('.')[0])}"


def read_modules(name: str):
    """Import what a part needs, including torch, without using a device."""
    if name == FAIL:
        return
    module = import_module(module_of(name))
    if hasattr(module, "read_modules"):
        module.read_modules()


def measure_part(name: str, sizes: Sizes, record: Record, directory: Path):
    """Run a part and record an exception outside its measurements as that of the part itself."""
    record.attempt("the part itself", lambda: run_part(name, sizes, record, directory))
    record.finish()


def run_part(name: str, sizes: Sizes, record: Record, directory: Path):
    """Take all measurements of a part."""
    if name == FAIL:
        raise RuntimeError("this section fails on purpose")
    module, case = import_module(module_of(name)), name.partition(".")[2]
    exchange, results = directory / "exchange", results_directory(directory)
    calls: dict[str, Callable[[], None]] = {
        "serving": lambda: run_serving(sizes, record, directory),
        "first_token.compressed": lambda: module.run_compressed(sizes, record),
        "text": lambda: module.run_uncompressed(sizes, record),
        "warm": lambda: module.run_warm(sizes, record, results),
        "beside_torch.serving": lambda: module.run_serving(sizes, record, exchange),
        "beside_torch.ours": lambda: module.run_training(sizes, record, exchange, results),
        "beside_torch.torch": lambda: module.run(sizes, record, exchange),
        "learning": lambda: module.run(sizes, record, directory / "learning"),
    }
    if name.startswith("training."):
        module.run(sizes, record, int(case))
    else:
        calls.get(name, lambda: module.run(sizes, record))()


def run_serving(sizes: Sizes, record: Record, directory: Path):
    """Run the parts of SERVING, each with its share of the time left."""
    shares = dict(SERVING)
    while shares:
        name, share = next(iter(shares.items()))
        deadline = time.time() + record.left() * share / sum(shares.values())
        del shares[name]
        own = Record(results_directory(directory) / f"{name}.json", deadline, record.started)
        measure_part(name, sizes, own, directory)
        if not own.finished:
            record.skip(name, f"see results/{name}.json")
