"""The plan of a run of the benchmark: its sizes, its limit, and the directory it writes to."""

from dataclasses import dataclass
from pathlib import Path

from launch.bench.accelerator.parts import results_directory
from launch.bench.accelerator.record import Record
from launch.bench.inference.sizes import Sizes


@dataclass(frozen=True)
class Plan:
    """The command's arguments, and when it started, in seconds since 1970."""

    directory: Path
    sizes: Sizes
    limit: float  # seconds of a measurement
    started: float

    def file(self, part: str) -> Path:
        """Return the file with the results of a part."""
        return results_directory(self.directory) / f"{part}.json"

    def is_too_long(self, record: Record, name: str, seconds: float) -> bool:
        """Return whether a measurement would take longer than the limit, and record that."""
        if name in record.measurements or seconds <= self.limit:
            return False
        record.skip(name, f"would take about {seconds:.0f} s; raise --limit")
        return True
