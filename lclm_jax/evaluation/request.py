"""The request of an evaluation: its tasks, views, ratios and lengths."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ChatTemplate = Literal["answers", "always", "never"]


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        tasks: names of tasks of this package (`evaluation.tasks.TASKS`) and of the harness.
        views: names of views (`evaluation.views`).
        ratios: of the views that depend on it; none means all ratios of the model.
        lengths: of passages in tokens, for tasks of several.
        limit: rows of each task and length, the first ones; None for all.
        chat_template: "answers" uses it for tasks that write answers, "always" for choices, too.
        contexts: rules for passages of harness tasks, as `TASK=field:NAME`.
        data: directory with the files of published tasks.
        include: directory with further tasks of the harness, in YAML.
        batch: questions answered at once.
        seed: of generated tasks of this package.
    """

    tasks: Sequence[str]
    views: Sequence[str] = ("latents", "text", "nothing", "first", "random")
    ratios: Sequence[int] = ()
    lengths: Sequence[int] = ()
    limit: int | None = None
    chat_template: ChatTemplate = "answers"
    contexts: Sequence[str] = ()
    data: Path | None = None
    include: Path | None = None
    batch: int = 16
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the request in JSON."""
        values = asdict(self)
        return {name: str(x) if isinstance(x, Path) else x for name, x in values.items()}
