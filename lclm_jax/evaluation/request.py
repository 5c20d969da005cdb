"""The request of an evaluation: its tasks, views, ratios and lengths."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lclm_jax.cli import listed, path, setting
from lclm_jax.config.settings import Size
from lclm_jax.evaluation.views import VIEW_NAMES

ChatTemplate = Literal["answers", "always", "never"]


@dataclass(frozen=True)
class Request:
    """A choice of what to evaluate.

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

    def distinct(self) -> "Request":
        """Return the request without repetitions of tasks and lengths."""
        tasks, lengths = (tuple(dict.fromkeys(names)) for names in (self.tasks, self.lengths))
        return replace(self, tasks=tasks, lengths=lengths)

    def to_dict(self) -> dict[str, Any]:
        """Return the request in JSON."""
        values = asdict(self)
        return {name: str(x) if isinstance(x, Path) else x for name, x in values.items()}


def add_request_arguments(parser: ArgumentParser):
    """Add an argument for each field of a Request."""
    names, numbers = listed(str), listed(Size)
    parser.add_argument(
        "--tasks", type=names, required=True, help="built in, or of lm-evaluation-harness"
    )
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=(),
        help="of passages, in tokens, where tasks have several",
    )
    parser.add_argument("--views", type=names, default=Request.views, help=",".join(VIEW_NAMES))
    parser.add_argument(
        "--ratios", type=numbers, default=(), help="tokens per latent (default: all of the model)"
    )
    parser.add_argument("--limit", type=setting(Size), help="rows of each task and length")
    parser.add_argument("--chat-template", choices=get_args(ChatTemplate), default="answers")
    parser.add_argument(
        "--context",
        action="append",
        dest="contexts",
        default=[],
        metavar="TASK=RULE",
        help="passage of a harness task: whole, nothing or field:NAME; repeatable",
    )
    parser.add_argument("--data", type=path, metavar="DIR", help="with the files of built-in tasks")
    parser.add_argument("--include", type=path, metavar="DIR", help="with harness tasks in YAML")
    parser.add_argument(
        "--batch", type=setting(Size), default=16, help="questions answered at once"
    )
    parser.add_argument("--seed", type=int, default=0, help="of generated tasks that are built in")
