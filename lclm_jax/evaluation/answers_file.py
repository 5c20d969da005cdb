"""A file of answers, one JSON line for each, so that an evaluation resumes where it ended."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.errors import FileError

log = logging.getLogger(__name__)


ANSWERS = "answers.jsonl"  # in the directory of an evaluation
# Part of every key. Raise it with each change of prompts or of decoding, such as the agent's
# instructions, so that earlier answers are not used.
VERSION = 1


class AnswersFile:
    """Answers by a key of all that they depend on; kept in memory only if `path` is None.

    A line that was cut off at the end of the file is dropped. Raises FileError for any other line
    that is not an answer.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        if path and path.exists():
            self._read(path)

    def _read(self, path: Path):
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            log.warning("%s: dropped its last line, which was cut off", path)
            with path.open("rb+") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                answer = json.loads(line)
                self._answers[answer["key"]] = answer
            except (ValueError, TypeError, KeyError) as error:
                raise FileError(
                    f"{path}: expected an answer in JSON in line {number}, got "
                    f"{line[:60]!r}; remove the line, and its question is answered again"
                ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._answers[key]

    def add(self, answers: Mapping[str, Mapping[str, Any]]):
        """Append answers by key; those that the file has already stay as they are."""
        new = {key: {"key": key, **answer} for key, answer in answers.items() if key not in self}
        if new and self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(answer)}\n" for answer in new.values())
        self._answers.update(new)
