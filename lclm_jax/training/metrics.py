"""Metrics of training steps: read one step late, checked for non-finite values, and logged.

Reading late keeps the devices busy: the next step runs while the host reads the one before.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from lclm_jax.config import Config, StageConfig
from lclm_jax.costs.chips import find_chip
from lclm_jax.costs.work import training_flops
from lclm_jax.data.loading import Mixture, batch_origins
from lclm_jax.training.journal import Journal
from lclm_jax.training.state import trained_parts
from lclm_jax.training.step import STREAM_SUMS, Metrics

log = logging.getLogger(__name__)
# Metrics that a log line sums over its steps.
SUMMED_METRICS = (*STREAM_SUMS, "context_tokens", "latents", "decoder_tokens")
# Metrics of a step that a log line leaves out: `skipped`, `step_seconds` and `waiting` have them.
OMITTED_METRICS = ("finite", "seconds", "waited")
DataPosition = Mapping[str, Any]  # state of the data's iterator before a batch


class Recorder:
    """Metrics of a stage: read for the step before the running one, logged every `log_every` steps.

    Attributes:
        summary: the newest known step in a few words, for the progress bar.
        failing: number of non-finite steps in a row.
        failed: step and data position of the first of them.
        left_out: number of examples that fit no row, by stream and reason, since the stage began.
    """

    def __init__(self, config: Config, stage: StageConfig, mixture: Mixture, journal: Journal):
        self.config, self.stage, self.mixture, self.journal = config, stage, mixture, journal
        self.unread: list[tuple[int, Metrics, DataPosition]] = []  # at most one while a step runs
        self.steps: list[Metrics] = []  # on the host, since the last log line
        self.summary = ""
        self.failing = 0
        self.failed: tuple[int, DataPosition] | None = None
        self.left_out: dict[str, dict[str, int]] = {}
        # Start of the current step, and the seconds it has waited for data.
        self.since, self.waited = time.perf_counter(), 0.0

        windows = stage.row_windows or config.data.row_windows
        row = training_flops(
            config.model, config.data.row_positions, windows, trained_parts(config, stage)
        ).total
        self.flops = config.data.batch_rows * row / jax.device_count()  # of one step on one device
        chip = find_chip(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops if chip else None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure time spent waiting for data: an upper bound of the devices' idle time."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave work that is no part of a step, such as validation, out of the step's time."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def summarise(self) -> str:
        """Describe the newest known step in a few words."""
        seconds, waited = self._pace()
        figures = self.steps[-1]
        tokens = float(figures["context_tokens"] + figures["decoder_tokens"]) / seconds
        words = [
            f"loss {float(figures['loss']):.3f}",
            f"{tokens:,.0f} tokens/s",
            f"{seconds:.3g} s/step",
        ]
        words.append(f"waits {100 * waited:.0f} %")
        words += [f"MFU {100 * self.flops / seconds / self.peak:.0f} %"] if self.peak else []
        return " · ".join(words)

    def _pace(self) -> tuple[float, float]:
        """Return the mean seconds per step, and the share of them spent waiting for data.

        Both are over the steps read since the last log line.
        """
        seconds, waited = (sum(step[key] for step in self.steps) for key in ("seconds", "waited"))
        return max(seconds, 1e-9) / len(self.steps), waited / max(seconds, 1e-9)

    def add(self, step: int, metrics: Metrics, before: DataPosition):
        """Add the metrics of a step that has just started, and read those of the step before.

        `before` is the position of the data before the step's batch. A step's time is the time
        between two calls: it includes the wait for its batch and for the end of the step before.
        """
        if self.unread:
            jax.block_until_ready(self.unread[-1][1])
        now = time.perf_counter()
        self.unread.append(
            (step, metrics | {"seconds": now - self.since, "waited": self.waited}, before)
        )
        self.since, self.waited = now, 0.0
        self._read(keep=1)

    def flush(self):
        """Read all metrics, waiting for the running step, and log those that are left."""
        self._read(keep=0)
        self._write()

    def _read(self, keep: int):
        while len(self.unread) > keep:
            step, metrics, before = self.unread.pop(0)
            figures = jax.device_get(metrics)
            self.steps.append(figures | {"step": step})
            self._watch(step, figures, before)
            self.summary = self.summarise()
            self.left_out = {
                self.stage.streams[int(number)].name: count
                for number, count in before["left_out"].items()
            }
            if step % self.config.run.log_every == 0:
                self._write()

    def _watch(self, step: int, figures: Metrics, before: DataPosition):
        self.failing = int(figures["failing"])
        if not self.failing:
            self.failed = None
            return
        self.failed = self.failed or (step, before)
        if figures["finite"]:
            return  # skipped because of the steps before it
        if not self.journal.writes:
            return
        loss, norm = float(figures["loss"]), float(figures["gradient_norm"])
        records = [record for row in batch_origins(self.mixture, dict(before)) for record in row]
        log.warning(
            "%s step %d was skipped: loss %s, gradient norm %s; its examples: %s",
            *(self.stage.name, step, loss, norm, ", ".join(records)),
        )
        self.journal.event(
            "skipped", self.stage, step, loss=loss, gradient_norm=norm, records=records
        )

    def _write(self):
        if not self.steps:
            return
        last, (seconds, waiting) = self.steps[-1], self._pace()
        # A skipped step has trained on nothing.
        taken = [figures for figures in self.steps if figures["finite"]]
        sums = {
            key: sum((np.asarray(figures[key], np.float64) for figures in taken), np.zeros(()))
            for key in SUMMED_METRICS
        }
        tokens = float(sums["stream_tokens"].sum())
        line = {
            "stage": self.stage.name,
            "step": last["step"],
            "steps": self.stage.steps,
            "time": time.time(),
        }
        line |= {
            "loss": float(sums["stream_nll"].sum()) / tokens if tokens else math.nan,
            "trained_tokens": tokens,
        }
        line |= {key: float(sums[key]) for key in ("context_tokens", "latents", "decoder_tokens")}
        line |= {
            "step_seconds": seconds,
            "positions_per_second": self.config.data.batch_rows
            * self.config.data.row_positions
            / seconds,
        }
        line["tokens_per_second"] = (line["context_tokens"] + line["decoder_tokens"]) / (
            seconds * len(self.steps)
        )
        line |= {
            "flops_per_second": self.flops / seconds,
            "mfu": self.flops / seconds / self.peak if self.peak else None,
        }
        line |= {"waiting": waiting, "left_out": self.left_out}
        line |= {
            key: float(x)
            for key, x in last.items()
            if key not in line and key not in OMITTED_METRICS and np.ndim(x) == 0
        }
        columns = np.stack(
            [sums[key] + np.zeros(len(self.stage.streams)) for key in STREAM_SUMS], axis=1
        )
        line["streams"] = {
            stream.name: {
                "loss": float(nll / count),
                "accuracy": float(correct / count),
                "tokens": int(count),
            }
            for stream, (nll, correct, count) in zip(self.stage.streams, columns, strict=True)
            if count
        }
        self.journal.log(line)
        log.info(
            "%s step %d of %d: loss %.3f", line["stage"], line["step"], line["steps"], line["loss"]
        )
        self.steps.clear()
