"""Which code this is: the package's version, and the commit where it runs from a git repository."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HOUSE = Path(__file__).parents[1]


@cache
def code_version() -> str:
    """As `0.1.0`, `0.1.0+g1a2b3c4d` or, with changes that are in no commit, `0.1.0+g1a2b3c4d.changed`."""
    try:
        number = version("lclm_jax")
    except PackageNotFoundError:
        number = "unknown"
    commit = _git("rev-parse", "--short=8", "HEAD") if (HOUSE / ".git").exists() else ""
    changed = ".changed" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{number}+g{commit}{changed}" if commit else number


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(HOUSE), *arguments], capture_output=True, encoding="utf-8", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
