"""Seconds to the first token and peak memory, by view and length of the context.

The protocol is the paper's: rounds that warm up, then the mean of several others. A round begins
with the tokens of a context and a question, and ends with the logits of the first token of the
answer; neither tokenizing nor earlier prompts count.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated, Any

from lclm_jax.config import ConfigError, ModelConfig
from lclm_jax.config.settings import Count, NotEmpty, Settings, Size
from lclm_jax.config.values import to_dict
from lclm_jax.data.records import count_latents
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answers_file import AnswersFile
from lclm_jax.evaluation.first_token import random_tokens, time_first_token
from lclm_jax.evaluation.memory import peak_memory, ran_out_of_memory, read_peak, start_peak
from lclm_jax.evaluation.views import View
from lclm_jax.inference.answers import check_length
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.progress import Progress, track
from lclm_jax.version import code_version

MEASURED_VIEWS = ("latents", "text")
TAG_POSITIONS = 2  # of the tags around latents
CPU_PROTOCOL = {"warm_ups": 1, "repeats": 3, "windows_at_once": 16}
MAX_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class EfficiencySettings(Settings):
    """Contexts to measure, and the protocol; its defaults are the paper's, for an accelerator."""

    lengths: Annotated[tuple[Size, ...], NotEmpty()]  # of contexts, in tokens
    views: Annotated[tuple[View, ...], NotEmpty()]  # `latents` at a ratio, and `text`
    warm_ups: Count = 20  # rounds that are not timed
    repeats: Size = 30  # rounds that are timed
    windows_at_once: Size = 128  # largest number of windows of an encoder pass
    question_tokens: Size = 62  # read after the context

    def __post_init__(self):
        super().__post_init__()
        if wrong := [view.label for view in self.views if view.name not in MEASURED_VIEWS]:
            known = " and ".join(MEASURED_VIEWS)
            raise ConfigError(f"efficiency is measured of the views {known}, got {wrong[0]}")

    @classmethod
    def for_model(
        cls,
        model: LanguageModel,
        lengths: Sequence[int],
        views: Sequence[View],
        **protocol: int | None,
    ) -> "EfficiencySettings":
        """Return settings for the devices of a model, with fewer rounds and windows on a CPU.

        Parts of the protocol that are None take their defaults.
        """
        on_cpu = model.mesh.devices.flat[0].platform == "cpu"
        given = {name: value for name, value in protocol.items() if value is not None}
        return cls(tuple(lengths), tuple(views), **(CPU_PROTOCOL if on_cpu else {}) | given)


@dataclass(frozen=True)
class Case:
    """A view of a context of a length."""

    view: View
    length: int  # in tokens

    def positions(self, config: ModelConfig, settings: EfficiencySettings) -> int:
        """Return the positions of the prompt, with a question."""
        if self.view.name == "text":
            return self.length + settings.question_tokens
        latents = count_latents(self.length, config, self.view.ratio)
        return latents + TAG_POSITIONS + settings.question_tokens

    def describe(self, settings: EfficiencySettings) -> dict[str, Any]:
        """Return the columns of a row that name the case and its protocol."""
        compressed = self.view.name == "latents"
        return {
            "view": self.view.label,
            "length": self.length,
            "question_tokens": settings.question_tokens,
            "repeats": settings.repeats,
            "warm_ups": settings.warm_ups,
            "windows_at_once": settings.windows_at_once if compressed else None,
        }


@dataclass(frozen=True)
class Figures:
    """Figures of a case, measured or estimated; None where they are not known.

    Attributes:
        first_token_seconds: compression and prefill together, the mean of all repeats; as are the
            two parts.
        standard_deviation: of `first_token_seconds`, in seconds; None of a single repeat.
        median_seconds: of `first_token_seconds`.
        least_seconds: of an estimate; its `first_token_seconds` if all work overlapped.
        peak_bytes: of a device, or of the process where devices do not count their memory.
        peak_is_exact: False if `peak_bytes` is only an upper bound, because the process needed as
            much before.
        failure: the reason why there are no figures.
    """

    first_token_seconds: float | None = None
    compress_seconds: float | None = None
    prefill_seconds: float | None = None
    standard_deviation: float | None = None
    median_seconds: float | None = None
    least_seconds: float | None = None
    peak_bytes: int | None = None
    peak_is_exact: bool = True
    failure: str | None = None


def measure_efficiency(
    model: LanguageModel, settings: EfficiencySettings, file: Path, progress: Progress = track
) -> list[dict[str, Any]]:
    """Measure every view of every length on the devices of a model, and return a row for each.

    Rows are dicts with the names of `Figures` and "view", "length", "device", "source" and the
    protocol. They are written to a file of JSON lines, one after the other; those it has of equal
    settings, shapes and devices are not measured again. A context for which memory or the
    decoder's positions do not suffice has a "failure" in place of seconds.

    The peak of a device cannot be reset, so cases with few positions come first.
    """
    cases = list_cases(settings, model.config)
    compute = partial(measure_case, model, settings=settings)
    columns = {"device": describe_devices(model), "source": "measured"}
    return fill_file(file, settings, model.config, cases, columns, compute, progress)


def list_cases(settings: EfficiencySettings, config: ModelConfig) -> list[Case]:
    """Return every view of every length, those with few positions first."""
    cases = [Case(view, length) for view in settings.views for length in settings.lengths]
    return sorted(dict.fromkeys(cases), key=lambda case: case.positions(config, settings))


def fill_file(
    file: Path,
    settings: EfficiencySettings,
    config: ModelConfig,
    cases: Sequence[Case],
    columns: Mapping[str, Any],
    compute: Callable[[Case], Figures],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the rows of all cases by view and length; those not in the file are computed.

    `columns` are further columns of every row.
    """
    known, rows = AnswersFile(file), {}
    shapes = _digest(to_dict(config))
    for case in progress(cases, "first tokens", len(cases)):
        row = {**case.describe(settings), **columns, "shapes": shapes}
        key = _digest(row)
        if key not in known:
            known.add({key: {**row, **asdict(compute(case)), "version": code_version()}})
        rows[case] = known[key]
    ordered = [Case(view, length) for view in settings.views for length in settings.lengths]
    return [rows[case] for case in ordered]


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def measure_case(model: LanguageModel, case: Case, settings: EfficiencySettings) -> Figures:
    """Measure rounds of reading a context and a question."""

    def measure() -> Figures:
        check_length(case.positions(model.config, settings), 1, model.config)
        context = random_tokens(model.config, case.length)
        question = random_tokens(model.config, settings.question_tokens, seed=1)
        passes = {"windows_at_once": settings.windows_at_once}

        def read() -> tuple[float, float]:
            first = time_first_token(model, case.view, context, question, **passes)
            return first.compress_seconds, first.prefill_seconds

        return measure_rounds(read, model, settings.warm_ups, settings.repeats)

    return figures_or_failure(measure)


def figures_or_failure(measure: Callable[[], Figures]) -> Figures:
    """Return what `measure` returns, or the failure where positions or memory do not suffice."""
    try:
        return measure()
    except TextError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        message = str(error) or type(error).__name__
    return Figures(failure=message.splitlines()[0][:MAX_MESSAGE_CHARACTERS])


def measure_rounds(
    read: Callable[[], tuple[float, float]], model: LanguageModel, warm_ups: int, repeats: int
) -> Figures:
    """Return the figures of rounds of `read`, which returns seconds of compression and prefill."""
    devices = list(model.mesh.devices.flat)
    earlier_peak = peak_memory(devices)
    for _ in range(warm_ups):
        read()
    start_peak()
    compressing, prefilling = zip(*(read() for _ in range(repeats)), strict=True)
    totals = [sum(parts) for parts in zip(compressing, prefilling, strict=True)]
    peak = read_peak(devices)
    return Figures(
        first_token_seconds=fmean(totals),
        compress_seconds=fmean(compressing),
        prefill_seconds=fmean(prefilling),
        standard_deviation=stdev(totals) if len(totals) > 1 else None,
        median_seconds=median(totals),
        peak_bytes=peak,
        peak_is_exact=earlier_peak is None or peak is None or peak > earlier_peak,
    )


def describe_devices(model: LanguageModel) -> str:
    """Return the kind of a model's devices, and their number if there are several."""
    devices = list(model.mesh.devices.flat)
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    return f"{count}{devices[0].device_kind}"
