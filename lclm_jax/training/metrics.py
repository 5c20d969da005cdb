"""The figures of steps: read a step late, so that no device waits, watched for what is not finite, and written as lines."""

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
ADDED = (*STREAM_SUMS, "context_tokens", "latents", "decoder_tokens")  # over a line's steps
HIDDEN = ("finite", "seconds", "waited")  # told by other names
Position = Mapping[str, Any]  # of the data's iterator


class Recorder:
    """Reads the metrics of the step before the one that runs, and writes a line every `log_every` steps."""

    def __init__(self, config: Config, stage: StageConfig, mixture: Mixture, journal: Journal):
        self.config, self.stage, self.mixture, self.journal = config, stage, mixture, journal
        self.unread: list[tuple[int, Metrics, Position]] = []  # at most one while a step runs
        self.steps: list[Metrics] = []  # on the host, since the line before
        self.summary = ""  # of the last step that is known
        self.failing = 0  # steps in a row that were not finite
        self.failed: tuple[int, Position] | None = None  # the first of them
        self.left_out: dict[
            str, dict[str, int]
        ] = {}  # examples that fit no row, by stream and reason, since the stage began
        self.since, self.waited = time.perf_counter(), 0.0  # of the step that begins
        windows = stage.row_windows or config.data.row_windows
        row = training_flops(
            config.model, config.data.row_positions, windows, trained_parts(config, stage)
        ).total
        self.flops = config.data.batch_rows * row / jax.device_count()  # of a step and device
        chip = find_chip(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops if chip else None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data; its share of the time bounds from above how long devices stood idle for them."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Around what is no part of a step, as validation; its time counts in no line."""
        begun = time.perf_counter()
        yield
        self.since += time.perf_counter() - begun

    def summarise(self) -> str:
        """The last step that is known, in a few words."""
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
        """Seconds a step, and the share of them waited for data, of the steps read since the line before."""
        seconds, waited = (sum(step[key] for step in self.steps) for key in ("seconds", "waited"))
        return max(seconds, 1e-9) / len(self.steps), waited / max(seconds, 1e-9)

    def add(self, step: int, metrics: Metrics, before: Position):
        """Of a step that has just begun, and the data's position before its batch; reads those of the step before.

        A step's time is that between two calls: it waits for its batch, and for the end of the step before.
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
        """Reads all, waiting for the step that runs, and writes what is left as a line."""
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

    def _watch(self, step: int, figures: Metrics, before: Position):
        self.failing = int(figures["failing"])
        if not self.failing:
            self.failed = None
            return
        self.failed = self.failed or (step, before)
        if figures["finite"]:
            return  # not taken because of those before it
        if not self.journal.writes:
            return
        told = {"loss": float(figures["loss"]), "gradient_norm": float(figures["gradient_norm"])}
        records = [record for row in batch_origins(self.mixture, dict(before)) for record in row]
        log.warning(
            "%s step %d was skipped: loss %s, gradient norm %s; its examples: %s",
            *(self.stage.name, step, told["loss"], told["gradient_norm"], ", ".join(records)),
        )
        self.journal.event("skipped", self.stage, step, **told, records=records)

    def _write(self):
        if not self.steps:
            return
        last, (seconds, waiting) = self.steps[-1], self._pace()
        taken = [
            figures for figures in self.steps if figures["finite"]
        ]  # what was skipped was not trained on
        sums = {
            key: sum((np.asarray(figures[key], np.float64) for figures in taken), np.zeros(()))
            for key in ADDED
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
            if key not in line and key not in HIDDEN and np.ndim(x) == 0
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
