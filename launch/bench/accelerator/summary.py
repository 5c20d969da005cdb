"""Headline figures and their goals, written to summary.json and shown on the terminal."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from launch.bench.accelerator.comparison import DECODE, ENCODE, FIRST_TOKEN, TRAIN
from launch.bench.accelerator.parts import PARTS, SERVING, results_directory
from launch.bench.accelerator.record import read_results
from lclm_jax.cli import show_table
from lclm_jax.evaluation.paper import FIRST_TOKENS
from lclm_jax.files.atomic import write_whole

Results = dict[str, dict[str, Any]]  # part -> what `read_results` returns
K = 1024
# Seconds to the first token and bytes of peak memory on one H200, from the paper's figure.
PAPER, PAPER_TEXT = FIRST_TOKENS["latents 16x"], FIRST_TOKENS["text"]
RATIO = 16  # of the paper's figure


@dataclass(frozen=True)
class Goal:
    """A figure and its bound. `value` is None if it was not measured."""

    name: str
    value: float | None
    bound: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "met", False: "MISSED"}[self.met]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Summary:
    """Results of all parts, and the goals they are compared with."""

    results: Results
    goals: list[Goal]

    def to_dict(self) -> dict[str, Any]:
        return {
            "machine": measurements(self.results, "peaks").get("machine", {}),
            "goals": [goal.to_dict() for goal in self.goals],
            "parts": describe_parts(self.results),
        }


def read_all(directory: Path) -> Results:
    """Return the results of every part that has a file, in the order of PARTS."""
    files = {file.stem: file for file in sorted(results_directory(directory).glob("*.json"))}
    inside = {"serving": tuple(SERVING)}
    order = [name for part in PARTS for name in (*inside.get(part.name, ()), part.name)]
    names = [name for name in order if name in files]
    names += [name for name in files if name not in names]
    return {name: read_results(files[name]) for name in names}


def write_summary(directory: Path) -> Summary:
    results = read_all(directory)
    summary = Summary(results, list(goals(results)))
    write_whole(directory / "summary.json", json.dumps(summary.to_dict(), indent=1))
    return summary


def measurements(results: Results, part: str) -> dict[str, dict[str, Any]]:
    """Return a part's measurements by name, unfinished ones included."""
    data = results.get(part, {})
    return data.get("partial", {}) | data.get("measurements", {})


def describe_parts(results: Results) -> dict[str, dict[str, Any]]:
    """Return what each part measured, and what failed or was skipped."""
    return {
        name: {
            "finished": part["finished"],
            "measured": len(part["measurements"]),
            "failed": {key: last_line(text) for key, text in part["errors"].items()},
            "skipped": part["skipped"],
        }
        for name, part in results.items()
    }


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


# --- goals ---


def goals(results: Results) -> Iterator[Goal]:
    made = len(measurements(results, "right"))
    yield Goal(f"checks that failed, of {made} made", failed_checks(results), 0, False)
    lengths = compressed(results)
    by_tokens = {length["tokens"]: length for length in lengths}
    for tokens, bound in ((64 * K, 0.32), (1024 * K, 7.0)):
        value = by_tokens.get(tokens, {}).get("seconds")
        yield Goal(f"first token after {tokens // K}k tokens at 16x", value, bound, False, "s")
    peak = by_tokens.get(1024 * K, {}).get("peak_bytes")
    yield Goal("peak memory at 1024k tokens", scaled(peak, 1e-9), 30.0, False, "GB")
    compiled = sum(length["compile_seconds"] for length in lengths) if lengths else None
    yield Goal("compile seconds, all lengths at 16x", compiled, 60.0, False, "s")
    warm = [length["seconds"] for length in measurements(results, "warm").values()]
    yield Goal("the same from the cache on disk", sum(warm) if warm else None, 5.0, False, "s")
    for number in range(3):
        best = best_step(results, number)
        if best is not None:
            share = mfu(results, best[1])
            yield Goal(f"MFU, {best[0]}", scaled(share, 100), 45.0, True, "%")
    yield Goal("results that differ from PyTorch's", failed_agreements(results), 0, False)
    for task, ratio in torch_ratios(results).items():
        yield Goal(f"times PyTorch's speed, {task}", ratio, 1.3, True)
    for rows, share in decoding_shares(results).items():
        yield Goal(f"share of memory speed, decoding {rows}", scaled(share, 100), 60.0, True, "%")


def scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def failed_checks(results: Results) -> float | None:
    """Return the number of checks of `right` that failed or ended with an error.

    Returns None if none was made.
    """
    right = results.get("right")
    if right is None or not (right["measurements"] or right["errors"]):
        return None
    failed = [check for check in right["measurements"].values() if not check["passed"]]
    return float(len(failed) + len(right["errors"]))


def failed_agreements(results: Results) -> float | None:
    torch = measurements(results, "beside_torch.torch").values()
    compared = [result["passed"] for result in torch if "passed" in result]
    return float(len(compared) - sum(compared)) if compared else None


def compressed(results: Results, ratio: int = RATIO) -> list[dict[str, Any]]:
    """Return the measurements of first tokens at a ratio, by ascending length."""
    lengths = measurements(results, "first_token.compressed").values()
    chosen = [length for length in lengths if length["ratio"] == ratio]
    return sorted(chosen, key=lambda length: length["tokens"])


def plain(results: Results) -> list[dict[str, Any]]:
    """Return the measurements of first tokens without compression, by ascending length."""
    lengths = measurements(results, "text").values()
    timed = [length for length in lengths if length["seconds"]]
    return sorted(timed, key=lambda length: length["tokens"])


def best_step(results: Results, number: int) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the measurements of the fastest step of a training case."""
    steps = measurements(results, f"training.{number}")
    timed = {name: step for name, step in steps.items() if step["seconds"]}
    return min(timed.items(), key=lambda item: item[1]["seconds"]) if timed else None


def mfu(results: Results, step: dict[str, Any], measured: bool = False) -> float | None:
    """Return the MFU, relative to the data sheet or to the speed of a measured product."""
    peak = measured_flops(results) if measured else data_sheet(results, "flops")
    return step["model_flops"] / step["seconds"] / peak if peak else None


def measured_flops(results: Results) -> float | None:
    product = measurements(results, "peaks").get("matrix product, bfloat16", {})
    return product.get("flops_per_second")


def data_sheet(results: Results, what: str) -> float | None:
    return measurements(results, "peaks").get("machine", {}).get(f"data_sheet_{what}")


def torch_ratios(results: Results) -> dict[str, float]:
    """Return the speed of each task relative to PyTorch."""
    lclm_jax = measurements(results, "beside_torch.serving")
    lclm_jax |= measurements(results, "beside_torch.ours")
    torch = measurements(results, "beside_torch.torch")
    names = (ENCODE, FIRST_TOKEN, DECODE, TRAIN)
    both = [name for name in names if name in lclm_jax and name in torch]
    return {name: torch[name]["seconds"] / lclm_jax[name]["seconds"] for name in both}


def decoding_shares(results: Results) -> dict[str, float]:
    """Return the share of the memory's speed that decoding needs, by batch size."""
    speed = measurements(results, "peaks").get("memory", {}).get("bytes_per_second")
    if not speed:
        return {}
    batches = measurements(results, "decoding")
    return {name: batch["needed_bytes_per_second"] / speed for name, batch in batches.items()}


# --- the terminal ---


def show_goals(summary: Summary):
    table = Table("figure", "value", "goal", "verdict")
    for goal in summary.goals:
        table.add_row(goal.name, shown(goal.value, goal.unit), bound(goal), goal.verdict)
    for name, part in describe_parts(summary.results).items():
        for kind in ("failed", "skipped"):
            for what, why in part[kind].items():
                table.add_row(f"{name}: {what}", "", "", f"{kind}: {why}"[:90])
    show_table(table)


def bound(goal: Goal) -> str:
    return f"{'>=' if goal.at_least else '<='} {goal.bound:g} {goal.unit}".strip()


def shown(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip()
