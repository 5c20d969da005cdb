"""Typed records of the files in a run's directory, and the only code that reads them."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from lclm_jax.config import Config
from lclm_jax.config.values import with_current_names
from lclm_jax.costs.work import Cost
from lclm_jax.errors import UserError
from lclm_jax.files import run_layout

log = logging.getLogger(__name__)
VIEWS = ("latents", "text", "nothing")  # how the decoder reads a context
COMPONENTS = ("encoder", "adapter", "decoder")
MAKE_EVERYTHING = "python -m launch.demo --config CONFIG"


class ReportError(UserError):
    """A run that cannot be reported on, or a missing package that its report needs."""


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    count: int  # trials


@dataclass(frozen=True)
class ViewScore:
    """Accuracy and loss (nats per token) of repeating passages."""

    accuracy: Share
    loss: float


@dataclass(frozen=True)
class Reconstruction:
    """Passages of one source and range of lengths in tokens, repeated by the decoder."""

    source: str
    lengths: tuple[int, ...]  # shortest and longest
    passages: int
    latents: ViewScore
    text: ViewScore
    nothing: ViewScore
    ratios: dict[str, ViewScore] = field(default_factory=dict)  # from latents of each ratio


@dataclass(frozen=True)
class Continuation:
    """Loss (nats per token) on the rest of a source's documents after their opening."""

    source: str
    documents: int
    latents: float
    text: float
    nothing: float


@dataclass(frozen=True)
class Questions:
    """Share of the questions about a context that were answered exactly."""

    questions: int
    latents: Share
    text: Share
    nothing: Share


@dataclass(frozen=True)
class ReadingCost:
    """Cost of reading a context of `tokens` tokens as text and as latents."""

    tokens: int
    plain: Cost
    compressed: Cost


@dataclass(frozen=True)
class Passage:
    source: str
    passage: str
    written: str


@dataclass(frozen=True)
class Opening:
    source: str
    opening: str
    truth: str
    written: str


@dataclass(frozen=True)
class Question:
    context: str
    question: str
    answer: str
    from_latents: str
    from_text: str
    from_nothing: str


@dataclass(frozen=True)
class Samples:
    reconstruction: tuple[Passage, ...]
    continuation: tuple[Opening, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Evaluation:
    """The contents of evaluation.json."""

    ratio: int
    parameters: dict[str, int]  # by component
    reconstruction: tuple[Reconstruction, ...]
    continuation: tuple[Continuation, ...]
    questions: Questions | None
    cost: dict[str, tuple[ReadingCost, ...]]  # by model, contexts in ascending length
    samples: Samples
    step: int = 0
    seconds: float = 0.0  # since the start of the command that evaluated

    @property
    def parameter_count(self) -> int:
        return sum(self.parameters.values())


@dataclass(frozen=True)
class RoundTrip:
    """The contents of round_trip.json: an export that was read back."""

    directory: str
    tensors: int
    bytes: int
    largest_logit_difference: float
    identical: bool


@dataclass(frozen=True)
class Line:
    """A line of log.jsonl, validation.jsonl or events.jsonl, about one step of a stage.

    A line of the log is about the steps since the line before. Its numbers are `loss`,
    `trained_tokens`, `context_tokens`, `latents`, `fill` and `window_fill` (shares of positions and
    windows in use), `step_seconds`, `positions_per_second`, `flops_per_second` (of the model, per
    device), `mfu` (NaN: the peak is unknown), `waiting` (share of the time), `skipped` (steps of
    the stage), `streams/STREAM/{loss,accuracy,tokens}` and, by component,
    `{gradient_norm,update_norm,parameter_norm,rate}/COMPONENT`. A validation has
    `streams/STREAM/VIEW/{loss,accuracy,tokens}`. An event has its name and its own fields.
    """

    stage: str
    step: int  # of the stage in files, of the run in `Run.validations`
    fields: dict[str, Any]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All numbers by their path, with two that follow from them."""
        numbers = dict(_flatten(self.fields))
        if numbers.get("latents") and "context_tokens" in numbers:
            numbers["tokens_per_latent"] = numbers["context_tokens"] / numbers["latents"]
        for component in COMPONENTS:
            moved = numbers.get(f"update_norm/{component}")
            size = numbers.get(f"parameter_norm/{component}")
            if size and moved is not None:
                numbers[f"relative_update/{component}"] = moved / size
        return numbers

    def finite(self, name: str) -> float | None:
        return finite(self.numbers.get(name))

    @property
    def streams(self) -> list[str]:
        return list(self.fields.get("streams") or ())

    def by_view(self, stream: str, quantity: str) -> dict[str, float]:
        """Return a stream's "loss" or "accuracy" in each view in which it is finite."""
        values = {view: self.finite(f"streams/{stream}/{view}/{quantity}") for view in VIEWS}
        return {view: value for view, value in values.items() if value is not None}

    @property
    def event(self) -> str | None:
        name = self.fields.get("event")
        return name if isinstance(name, str) else None

    @property
    def details(self) -> dict[str, Any]:
        """The fields of an event beside its name, time and place."""
        common = ("time", "event", "stage", "step")
        return {key: value for key, value in self.fields.items() if key not in common}


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{path}/{key}" if path else key)
    elif value is None or isinstance(value, (int, float)):
        known = finite(value)
        yield path, math.nan if known is None else known


@dataclass(frozen=True)
class Stage:
    """The log of one stage; its step s is step `start + s` of the run."""

    name: str
    start: int
    steps: int
    lines: tuple[Line, ...]

    @property
    def last_step(self) -> int:
        return self.lines[-1].step

    def total(self, name: str) -> float:
        return sum(line.finite(name) or 0.0 for line in self.lines)

    def median(self, name: str) -> float | None:
        values = [line.finite(name) for line in self.lines]
        known = [value for value in values if value is not None]
        return median(known) if known else None


@dataclass(frozen=True)
class Run:
    """Everything that a run's directory holds."""

    name: str
    config: dict[str, Any]
    stages: Sequence[Stage]
    validations: Sequence[Line]
    events: Sequence[Line]
    times: Sequence[float]  # of all lines of the log and of validations, ascending
    starts: dict[str, int]  # the run's step before each stage's first
    evaluation: Evaluation | None = None
    round_trip: RoundTrip | None = None

    @property
    def planned_steps(self) -> int:
        return sum(stage["steps"] for stage in self.config["stages"])

    @property
    def logged_steps(self) -> int:
        return self.stages[-1].start + self.stages[-1].last_step if self.stages else 0

    @property
    def last_step(self) -> int:
        """The last step that any file mentions, at least 1."""
        validated = [validation.step for validation in self.validations]
        return max([1, self.logged_steps, *validated])

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Name, first and last step of every stage that was reached."""
        starts, end = list(self.starts.values()), self.last_step
        spans = zip(self.starts, starts, [*starts[1:], end], strict=True)
        return [(name, start, min(stop, end)) for name, start, stop in spans if start < end]

    @cached_property
    def streams(self) -> list[str]:
        """Names of all streams, those trained on first."""
        lines = [line for stage in self.stages for line in stage.lines]
        names = [name for line in (*lines, *self.validations) for name in line.streams]
        return list(dict.fromkeys(names))

    def run_step(self, line: Line) -> int | None:
        """Return the step of the run, or None for a stage that is not part of this run."""
        start = self.starts.get(line.stage)
        return None if start is None else start + line.step

    @property
    def trained_tokens(self) -> float:
        return sum(stage.total("trained_tokens") for stage in self.stages)

    @property
    def training_seconds(self) -> float:
        """Seconds in the training loop, from the pace of every line."""
        data, seconds = self.config["data"], 0.0
        for stage in self.stages:
            previous = 0
            for line in stage.lines:
                per_step = line.finite("step_seconds")
                pace = line.finite("positions_per_second")
                if per_step is None and pace:
                    per_step = data["batch_rows"] * data["row_positions"] / pace
                seconds += (line.step - previous) * (per_step or 0.0)
                previous = line.step
        return seconds


def read_run(directory: Path) -> Run:
    """Read a run's directory, in which all files but config.json may be missing.

    Raises ReportError without a config or where a file is damaged.
    """
    config = read_json(directory / run_layout.CONFIG, dict[str, Any])
    if config is None:
        raise ReportError(
            f"{directory} is not a run: it has no config.json; "
            "give the directory that training wrote to"
        )
    names = (run_layout.LOG, run_layout.VALIDATION, run_layout.EVENTS)
    config = with_current_names(Config, config)
    lines, validations, events = (read_lines(directory / name) for name in names)
    stages = group_by_stage(lines)
    steps = {stage["name"]: stage["steps"] for stage in config["stages"]}
    steps |= {stage.name: stage.steps for stage in stages}
    lengths = list(steps.values())
    starts = {name: sum(lengths[:number]) for number, name in enumerate(steps)}
    times = [line.finite("time") for line in (*lines, *validations)]
    return Run(
        name=directory.resolve().name,
        config=config,
        stages=[replace(stage, start=starts[stage.name]) for stage in stages],
        validations=_final_validations(validations, starts),
        events=[event for event in events if event.event],
        times=sorted(time for time in times if time is not None),
        starts=starts,
        evaluation=read_json(directory / run_layout.EVALUATION, Evaluation),
        round_trip=read_json(directory / run_layout.ROUND_TRIP, RoundTrip),
    )


def read_json(path: Path, kind: Any) -> Any:
    """Read a file as a record; None if there is no file. Raises ReportError if it is damaged."""
    if not path.exists():
        return None
    try:
        return parse(kind, json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is not JSON of the expected form ({error}); "
            f"delete it and run {MAKE_EVERYTHING}"
        ) from error


def read_lines(path: Path) -> list[Line]:
    """Read a file of JSON lines, without those that were cut short."""
    if not path.exists():
        return []
    lines = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            try:
                fields = json.loads(text)
                stage, step = fields["stage"], fields["step"]
            except (json.JSONDecodeError, TypeError, KeyError):
                fields, stage, step = {}, None, None
            if type(stage) is str and type(step) is int:
                lines.append(Line(stage, step, fields))
            elif text.strip():
                log.warning("%s:%d has no stage and step and is left out", path, number)
    return lines


def parse(kind: Any, value: Any) -> Any:
    """Build a value of a type from JSON; objects become dataclasses, other keys are ignored."""
    if isinstance(kind, type) and is_dataclass(kind):
        types = _field_types(kind)
        return kind(**{name: parse(types[name], value[name]) for name in types if name in value})
    if kind is float:
        return math.nan if value is None else float(value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else parse(arguments[0], value)
    if origin is tuple:
        return tuple(parse(arguments[0], item) for item in value)
    if origin is dict:
        return {key: parse(arguments[1], item) for key, item in value.items()}
    return value


@cache
def _field_types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def group_by_stage(lines: Iterable[Line]) -> list[Stage]:
    """Group the lines of a log by stage, in the order of the run.

    A run that returned to an earlier step repeats it and all later steps, so what was logged about
    them before is dropped.
    """
    kept: dict[str, list[Line]] = {}
    for line in lines:
        stage_lines = kept.setdefault(line.stage, [])
        while next(reversed(kept)) != line.stage:
            kept.popitem()
        while stage_lines and stage_lines[-1].step >= line.step:
            stage_lines.pop()
        stage_lines.append(line)
    stages: list[Stage] = []
    for name, stage_lines in kept.items():
        start = stages[-1].start + stages[-1].steps if stages else 0
        last = stage_lines[-1]
        stages.append(Stage(name, start, last.fields.get("steps", last.step), tuple(stage_lines)))
    return stages


def _final_validations(validations: Iterable[Line], starts: dict[str, int]) -> list[Line]:
    """Count steps from the start of the run, and drop validations that the run went back behind."""
    final: list[Line] = []
    for line in validations:
        if line.stage in starts:
            step = starts[line.stage] + line.step
            while final and (
                final[-1].step > step or (final[-1].stage, final[-1].step) == (line.stage, step)
            ):
                final.pop()
            final.append(replace(line, step=step))
    return final


def finite(value: Any) -> float | None:
    """Return a finite number as it is, and None for everything else."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
