"""Figures of the code itself: how much there is, how dense it is, and which rooms import which.

    python -m launch.bench.code [DIRECTORY]

DIRECTORY is a checkout of this project of any age, by default the current one. Tests are left out
of all figures but their own lines. The command reads files and imports none of them.

Lines are all lines of a file; nodes a line are the nodes of its syntax tree over the lines that are
neither blank nor only a comment. A room is a directory with Python files; a module that lies
directly in `lclm_jax/` is a room of its own. An arrow is an import from one file to a file of
another room, and a circle is a set of rooms that can reach each other along arrows.
"""

import argparse
import ast
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from rich.table import Table

from lclm_jax.cli import path, run, show_table

PROGRAM = ("lclm_jax", "convert", "launch", "configs")
MAX_COLUMNS = 100
MAX_LISTED_FUNCTIONS = 5
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Modules that made pages before lclm_jax/reports/ was a room, so that old checkouts compare.
OLD_REPORT_MODULES = {
    "report",
    "findings",
    "history",
    "course",
    "curves",
    "plots",
    "page",
    "survey_page",
}


@dataclass(frozen=True)
class SourceFile:
    """A Python file, parsed."""

    path: str  # from the top of the checkout, with slashes
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def code_lines(self) -> int:
        """The number of lines that are neither blank nor only a comment."""
        return sum(1 for line in self.lines if line.strip() and not line.strip().startswith("#"))

    @property
    def long_lines(self) -> int:
        """The number of lines over 100 columns."""
        return sum(len(line) > MAX_COLUMNS for line in self.lines)

    @property
    def nodes(self) -> int:
        """The number of nodes of the syntax tree."""
        return sum(1 for _ in ast.walk(self.tree))

    @property
    def module(self) -> str:
        """The dotted name by which the file is imported."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str:
        """The directory of the file, or the file itself where it lies directly in lclm_jax/."""
        folder, _, name = self.path.rpartition("/")
        return self.path if folder == "lclm_jax" and name != "__init__.py" else folder

    def function_lengths(self) -> Iterator[tuple[int, str]]:
        """Yield the number of lines and the name of every function, nested ones included."""
        for node in ast.walk(self.tree):
            if isinstance(node, FUNCTIONS):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name

    def imported_names(self) -> Iterator[str]:
        """Yield each dotted name the file imports, wherever in the file the import stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@dataclass(frozen=True)
class Room:
    """The figures of one room."""

    name: str
    files: int
    lines: int
    nodes_per_line: float
    median_function: float
    longest_function: int
    long_lines: int


@dataclass(frozen=True)
class CodeFigures:
    """Everything the command prints."""

    rooms: list[Room]
    total: Room
    longest_functions: list[tuple[int, str]]
    flat_modules: int
    report_lines: int
    test_files: int
    test_lines: int
    readme_lines: int
    readme_words: int
    arrows: int
    room_arrows: int
    circles: list[list[str]]


def read_sources(directory: Path, folders: Iterable[str] = PROGRAM) -> list[SourceFile]:
    """Read all Python files below some folders of a checkout."""
    paths = sorted(file for folder in folders for file in (directory / folder).rglob("*.py"))
    return [
        SourceFile(file.relative_to(directory).as_posix(), file.read_text(encoding="utf-8"))
        for file in paths
    ]


def find_arrows(sources: Iterable[SourceFile]) -> set[tuple[str, str]]:
    """Return the imports between the files, as pairs (importing path, imported path)."""
    files = {source.module: source.path for source in sources}
    arrows = set()
    for source in sources:
        for name in source.imported_names():
            target = files.get(name) or files.get(name.rpartition(".")[0])
            if target and target != source.path:
                arrows.add((source.path, target))
    return arrows


def find_circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the sets of two or more places that can all reach each other.

    >>> find_circles([("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])
    [['b', 'c']]
    """
    targets = defaultdict(set)
    for start, end in edges:
        targets[start].add(end)
    reachable = {start: _reachable(start, targets) for start in targets}
    circles = {
        frozenset(end for end in ends if start in reachable.get(end, ()))
        for start, ends in reachable.items()
    }
    return sorted(sorted(circle) for circle in circles if len(circle) > 1)


def _reachable(start: str, targets: dict[str, set[str]]) -> set[str]:
    visited, waiting = set(), [start]
    while waiting:
        new = targets.get(waiting.pop(), set()) - visited
        visited |= new
        waiting.extend(new)
    return visited


def measure_code(directory: Path) -> CodeFigures:
    """Measure a checkout."""
    sources = read_sources(directory)
    tests = read_sources(directory, ["tests"])
    readme = (directory / "README.md").read_text(encoding="utf-8")
    by_room = defaultdict(list)
    for source in sources:
        by_room[source.room].append(source)

    rooms = {source.path: source.room for source in sources}
    public = "lclm_jax/__init__.py"  # exports from every room and belongs to none
    arrows = [
        (start, end)
        for start, end in find_arrows(sources)
        if rooms[start] != rooms[end] and public not in (start, end)
    ]
    edges = Counter((rooms[start], rooms[end]) for start, end in arrows)
    lengths = [
        (lines, f"{source.path}: {name}")
        for source in sources
        for lines, name in source.function_lengths()
    ]
    return CodeFigures(
        rooms=[_measure_room(name, files) for name, files in sorted(by_room.items())],
        total=_measure_room("all", sources),
        longest_functions=sorted(lengths, reverse=True)[:MAX_LISTED_FUNCTIONS],
        flat_modules=len(list((directory / "lclm_jax").glob("[!_]*.py"))),
        report_lines=sum(len(source.lines) for source in sources if _makes_reports(source.path)),
        test_files=len(tests),
        test_lines=sum(len(source.lines) for source in tests),
        readme_lines=len(readme.splitlines()),
        readme_words=len(readme.split()),
        arrows=len(arrows),
        room_arrows=len(edges),
        circles=find_circles(edges),
    )


def _makes_reports(path: str) -> bool:
    name = path.rpartition("/")[2].removesuffix(".py")
    in_library = path.startswith("lclm_jax/")
    return in_library and ("/reports/" in path or name in OLD_REPORT_MODULES)


def _measure_room(name: str, sources: list[SourceFile]) -> Room:
    lengths = [lines for source in sources for lines, _ in source.function_lengths()]
    code_lines = sum(source.code_lines for source in sources)
    return Room(
        name=name,
        files=len(sources),
        lines=sum(len(source.lines) for source in sources),
        nodes_per_line=sum(source.nodes for source in sources) / max(code_lines, 1),
        median_function=median(lengths) if lengths else 0,
        longest_function=max(lengths, default=0),
        long_lines=sum(source.long_lines for source in sources),
    )


def _table(figures: CodeFigures) -> Table:
    table = Table()
    for title in ("room", "files", "lines", "nodes a line", "functions: median", "longest"):
        table.add_column(title, justify="left" if title == "room" else "right")
    table.add_column(f"lines over {MAX_COLUMNS}", justify="right")
    for room in [*figures.rooms, figures.total]:
        table.add_row(
            room.name,
            str(room.files),
            f"{room.lines:,}",
            f"{room.nodes_per_line:.1f}",
            f"{room.median_function:g}",
            str(room.longest_function),
            str(room.long_lines),
        )
    return table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", type=path, default=Path())
    parser.add_argument("--json", action="store_true", help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = measure_code(arguments.directory)

    if arguments.json:
        sys.stdout.write(json.dumps(asdict(figures), indent=1) + "\n")
        return
    show_table(_table(figures))
    longest = "; ".join(f"{name} {lines}" for lines, name in figures.longest_functions)
    circles = "; ".join(" <-> ".join(circle) for circle in figures.circles) or "none"
    sys.stdout.write(
        f"longest functions: {longest}\n"
        f"flat modules in lclm_jax/: {figures.flat_modules}\n"
        f"lines that make reports: {figures.report_lines:,}\n"
        f"tests: {figures.test_files} files, {figures.test_lines:,} lines\n"
        f"README: {figures.readme_lines} lines, {figures.readme_words:,} words\n"
        f"arrows between files of different rooms: {figures.arrows}; "
        f"between rooms: {figures.room_arrows}\n"
        f"circles between rooms: {circles}\n"
    )


if __name__ == "__main__":
    run(main)
