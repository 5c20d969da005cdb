"""Metrics of training steps: read one step late, and logged every `run.log_every` steps.

Reading late keeps the devices busy: the next step runs while the host reads the one before.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lclm_jax.config import Stream
from lclm_jax.costs.chips import find_chip
from lclm_jax.training.non_finite import NonFiniteWatch
from lclm_jax.training.stage import StageRun
from lclm_jax.training.state import step_flops
from lclm_jax.training.step import STREAM_SUMS, Metrics
from lclm_jax.training.step_info import StepInfo

log = logging.getLogger(__name__)
# Metrics that a log line sums over its steps.
SUMMED_METRICS = (*STREAM_SUMS, "context_tokens", "latents", "decoder_tokens")
Sums = dict[str, np.ndarray]  # of SUMMED_METRICS, over the steps of a line
LeftOut = dict[str, dict[str, int]]  # number of examples that fit no row, by stream and reason


class MetricsReader:
    """A hook that reads the metrics of the step before the running one, for a log and a watch."""

    def __init__(self, log: "MetricsLog", watch: NonFiniteWatch):
        self.log, self.watch = log, watch
        self.unread: list[StepInfo] = []  # at most one while a step runs

    def __call__(self, info: StepInfo):
        """Read the metrics of the step before."""
        self._read()
        self.unread.append(info)

    def flush(self):
        """Read all metrics, waiting for the running step, and write those that are left."""
        self._read()
        self.log.write()

    def _read(self):
        for info in self.unread:
            metrics = jax.device_get(info.metrics)
            self.watch.add(info, metrics)
            self.log.add(info, metrics)
        self.unread.clear()


@dataclass(frozen=True)
class LoggedStep:
    """The metrics of a step on the host, and its times in seconds."""

    step: int
    metrics: Metrics
    seconds: float
    waited: float


class MetricsLog:
    """The steps of a stage since the last line of its log.

    Attributes:
        summary: the newest known step in a few words, for the progress bar.
        left_out: examples that fit no row since the stage began.
    """

    def __init__(self, stage_run: StageRun):
        self.stage_run = stage_run
        self.steps: list[LoggedStep] = []
        self.summary = ""
        self.left_out: LeftOut = {}
        self.speed = Speed.of_stage(stage_run)

    def add(self, info: StepInfo, metrics: Metrics):
        """Add a step; write a line if one is due."""
        self.steps.append(LoggedStep(info.step, metrics, info.seconds, info.waited))
        self.summary = summarise(self.steps, self.speed)
        streams = self.stage_run.stage.streams
        self.left_out = {
            streams[int(number)].name: count
            for number, count in info.data_position["left_out"].items()
        }
        if info.step % self.stage_run.run.config.run.log_every == 0:
            self.write()

    def write(self):
        """Write a line for the steps since the last one, if there are any."""
        if not self.steps:
            return
        line = {"stage": self.stage_run.stage.name, "step": self.steps[-1].step}
        line |= {"steps": self.stage_run.stage.steps, "time": time.time()}
        sums = sum_metrics(self.steps)
        line |= mean_metrics(sums) | self.speed.figures(self.steps, sums)
        line |= {"left_out": self.left_out}
        line |= {
            key: float(x)
            for key, x in self.steps[-1].metrics.items()
            if key not in line and key != "finite" and np.ndim(x) == 0
        }
        line |= {"streams": stream_metrics(sums, self.stage_run.stage.streams)}
        self.stage_run.run.journal.log(line)
        log.info(
            "%s step %d of %d: loss %.3f", line["stage"], line["step"], line["steps"], line["loss"]
        )
        self.steps.clear()

    def log_left_out(self):
        """Log the number of examples that fit no row."""
        for name, reasons in self.left_out.items():
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            log.warning(
                "stage %s left out examples of %s: %s", self.stage_run.stage.name, name, counts
            )


@dataclass(frozen=True)
class Speed:
    """The size of a step, from which its seconds give tokens per second and MFU."""

    positions: int  # decoder positions of a batch
    flops: float  # of a step on one device
    peak: float | None  # FLOP/s of the device, if known

    @classmethod
    def of_stage(cls, stage_run: StageRun) -> "Speed":
        """Return the size of a stage's steps on the devices of this machine."""
        config, stage = stage_run.run.config, stage_run.stage
        data = config.data
        chip = find_chip(jax.devices()[0].device_kind)
        return cls(
            positions=data.batch_rows * data.row_positions,
            flops=step_flops(config, stage).total / jax.device_count(),
            peak=chip.peak_flops if chip else None,
        )

    def mfu(self, seconds: float) -> float | None:
        """Return the share of the device's peak that steps of this many seconds reach."""
        return self.flops / seconds / self.peak if self.peak else None

    def figures(self, steps: Sequence[LoggedStep], sums: Sums) -> dict[str, Any]:
        """Return the figures of a log line that depend on time."""
        seconds, waiting = pace(steps)
        tokens = float(sums["context_tokens"]) + float(sums["decoder_tokens"])
        return {
            "step_seconds": seconds,
            "positions_per_second": self.positions / seconds,
            "tokens_per_second": tokens / (seconds * len(steps)),
            "flops_per_second": self.flops / seconds,
            "mfu": self.mfu(seconds),
            "waiting": waiting,
        }


def pace(steps: Sequence[LoggedStep]) -> tuple[float, float]:
    """Return the mean seconds per step, and the share of them spent waiting for data."""
    seconds = max(sum(step.seconds for step in steps), 1e-9)
    return seconds / len(steps), sum(step.waited for step in steps) / seconds


def sum_metrics(steps: Sequence[LoggedStep]) -> Sums:
    """Sum SUMMED_METRICS over the steps that were taken; a skipped step trained on nothing."""
    taken = [step.metrics for step in steps if step.metrics["finite"]]
    return {
        key: sum((np.asarray(metrics[key], np.float64) for metrics in taken), np.zeros(()))
        for key in SUMMED_METRICS
    }


def mean_metrics(sums: Sums) -> dict[str, float]:
    """Return the mean loss over the trained tokens, and the numbers of tokens."""
    tokens = float(sums["stream_tokens"].sum())
    return {
        "loss": float(sums["stream_nll"].sum()) / tokens if tokens else math.nan,
        "trained_tokens": tokens,
        **{key: float(sums[key]) for key in ("context_tokens", "latents", "decoder_tokens")},
    }


def stream_metrics(sums: Sums, streams: Sequence[Stream]) -> dict[str, Mapping[str, float]]:
    """Return loss, accuracy and tokens of every stream that had any, by name."""
    columns = np.stack([sums[key] + np.zeros(len(streams)) for key in STREAM_SUMS], axis=1)
    return {
        stream.name: {
            "loss": float(nll / count),
            "accuracy": float(correct / count),
            "tokens": int(count),
        }
        for stream, (nll, correct, count) in zip(streams, columns, strict=True)
        if count
    }


def summarise(steps: Sequence[LoggedStep], speed: Speed) -> str:
    """Describe the newest of the steps in a few words, and the pace of all of them."""
    seconds, waiting = pace(steps)
    newest = steps[-1].metrics
    tokens = float(newest["context_tokens"] + newest["decoder_tokens"]) / seconds
    words = [
        f"loss {float(newest['loss']):.3f}",
        f"{tokens:,.0f} tokens/s",
        f"{seconds:.3g} s/step",
        f"waits {100 * waiting:.0f} %",
    ]
    mfu = speed.mfu(seconds)
    words += [] if mfu is None else [f"MFU {100 * mfu:.0f} %"]
    return " · ".join(words)
