"""The parts of the benchmark: each is a process of its own, with a share of the time."""

from dataclasses import dataclass
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
    share: float  # of the time, in seconds of eight minutes
    on_cpu: bool = False  # whether jax must leave the accelerator alone

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    def file(self, directory: Path) -> Path:
        return results_directory(directory) / f"{self.name}.json"


# In the order in which they run: what is worth most comes first.
PARTS = (
    Part("right", 75),
    Part("peaks", 45),
    Part("first_token.compressed", 80),
    Part("training.0", 45),
    Part("training.1", 45),
    Part("beside_torch.ours", 45),
    Part("beside_torch.torch", 55, on_cpu=True),
    Part("decoding", 40),
    Part("first_token.text", 35),
    Part("first_token.warm", 25),
    Part("training.2", 35),
    Part("learning", 60),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))


def results_directory(directory: Path) -> Path:
    return directory / "results"


def choose_parts(sections: tuple[str, ...], sizes_have_cases: int) -> list[Part]:
    """The parts of these sections. Raises ValueError for a section that is not known."""
    unknown = [name for name in sections if name not in (*SECTIONS, FAIL)]
    if unknown:
        raise ValueError(
            f"expected --sections of {', '.join(SECTIONS)}, got {', '.join(unknown)}; "
            "separate them with commas"
        )
    chosen = [part for part in PARTS if part.section in sections]
    chosen = [
        part
        for part in chosen
        if part.section != "training" or int(part.name.rpartition(".")[2]) < sizes_have_cases
    ]
    return [*([Part(FAIL, 5)] if FAIL in sections else []), *chosen]


def run_part(name: str, sizes: Sizes, record: Record, directory: Path):
    """Measures everything of a part. Modules are imported only here: torch's and jax's sides."""
    section, _, rest = name.partition(".")
    results, exchange = results_directory(directory), directory / "exchange"
    if section == FAIL:
        raise RuntimeError("this section fails on purpose")
    if section == "first_token":
        module = import_module(f"{PACKAGE}.first_token")
        if rest == "compressed":
            module.run_compressed(sizes, record)
        elif rest == "text":
            module.run_uncompressed(sizes, record)
        else:
            module.run_warm(sizes, record, results)
    elif section == "training":
        import_module(f"{PACKAGE}.training").run(sizes, record, int(rest))
    elif section == "beside_torch":
        module = "beside_ours" if rest == "ours" else "beside_torch"
        import_module(f"{PACKAGE}.{module}").run(sizes, record, exchange)
    elif section == "decoding":
        import_module(f"{PACKAGE}.decoding").run(sizes, record)
    elif section == "learning":
        import_module(f"{PACKAGE}.learning").run(sizes, record, directory / "learning")
    else:
        import_module(f"{PACKAGE}.{section}").run(sizes, record)
