"""The version of this code: the package's, and the commit where it runs from a git repository."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
GIT_TIMEOUT_SECONDS = 20


@cache
def code_version() -> str:
    """Return `0.1.0`, or in a repository `0.1.0+g1a2b3c4d`, with `.changed` for local edits."""
    try:
        number = version("lclm_jax")
    except PackageNotFoundError:
        number = "unknown"
    commit = _git("rev-parse", "--short=8", "HEAD") if (REPOSITORY / ".git").exists() else ""
    if not commit:
        return number
    is_changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{number}+g{commit}{'.changed' if is_changed else ''}"


def _git(*arguments: str) -> str:
    """Return the output of git; an empty text where it fails or is not installed."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=GIT_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
