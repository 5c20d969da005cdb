"""Small files that appear whole or not at all, whatever ends the process that writes them."""

from pathlib import Path


def write_whole(path: str | Path, text: str):
    """Writes a text file beside its place and moves it there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
