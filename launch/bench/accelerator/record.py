"""Measurements of a part in a JSON file, which is written again after each of them."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from launch.bench.accelerator.report import report
from lclm_jax.files.atomic import write_whole
from lclm_jax.version import REPOSITORY

T = TypeVar("T")
MAX_REPORTED_CHARACTERS = 160
MIN_SECONDS_LEFT = 1.0  # to start another measurement


@dataclass(frozen=True)
class Result:
    """Base of all results."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Record:
    """Measurements of a part, kept in a file; those already in the file are not repeated."""

    def __init__(self, file: Path, deadline: float, started: float | None = None):
        self.file, self.deadline = file, deadline
        self.started = time.time() if started is None else started
        self._lock = Lock()
        self._data: dict[str, Any] = read_results(file) | {"errors": {}, "skipped": {}}

    @property
    def measurements(self) -> dict[str, dict[str, Any]]:
        return self._data["measurements"]

    def left(self) -> float:
        """Return the seconds until the part's deadline."""
        return self.deadline - time.time()

    def measure(
        self, name: str, call: Callable[[], Result], needs: float = MIN_SECONDS_LEFT
    ) -> dict[str, Any] | None:
        """Return the result of `call`, from the file if it is there.

        Returns None if the call fails, which is recorded with its traceback, or if fewer than
        `needs` seconds are left.
        """
        if name in self.measurements:
            return self.measurements[name]
        if self.left() < needs:
            reason = f"needs {needs:.0f} s, {max(0.0, self.left()):.0f} s were left"
            self._keep("skipped", name, reason)
            return None
        started = time.perf_counter()
        measured = self.attempt(name, call)
        if measured is None:
            return None
        result = measured.to_dict()
        result["measured_in_seconds"] = time.perf_counter() - started
        self._data["partial"].pop(name, None)
        self._keep("measurements", name, result)
        report(f"{name}: {_brief(result)}", self.started)
        return result

    def attempt(self, name: str, call: Callable[[], T]) -> T | None:
        """Call `call` and record an exception, so that later measurements still run."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - a failure must not end the other measurements
            self._keep("errors", name, traceback.format_exc().replace(f"{REPOSITORY}/", ""))
            message = str(error)[:MAX_REPORTED_CHARACTERS]
            report(f"{name}: FAILED, {type(error).__name__}: {message}", self.started)
            return None

    def say(self, text: str):
        report(text, self.started)

    def keep_partial(self, name: str, result: Result):
        """Write the result of a long measurement so far; a later `measure` replaces it."""
        self._keep("partial", name, result.to_dict())

    @property
    def finished(self) -> bool:
        """True after `finish` if nothing failed or was skipped."""
        return self._data["finished"]

    def skip(self, name: str, reason: str):
        """Record that something was not measured."""
        self._keep("skipped", name, reason)

    def finish(self):
        """Mark the part as complete, unless something failed or was skipped."""
        with self._lock:
            complete = not self._data["errors"] and not self._data["skipped"]
            self._data["finished"] = complete
            self._write()

    def _keep(self, kind: str, name: str, value: Any):
        with self._lock:
            self._data[kind][name] = value
            self._write()

    def _write(self):
        write_whole(self.file, json.dumps(self._data, indent=1))


def read_results(file: Path) -> dict[str, Any]:
    """Return the content of a part's file, with empty sections if there is none."""
    empty = {"measurements": {}, "partial": {}, "errors": {}, "skipped": {}, "finished": False}
    return empty | json.loads(file.read_text(encoding="utf-8")) if file.exists() else empty


def _brief(result: dict[str, Any]) -> str:
    shown = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.items()
        if isinstance(value, (bool, int, float, str)) and key != "measured_in_seconds"
    ]
    return ", ".join(shown)[:MAX_REPORTED_CHARACTERS]
