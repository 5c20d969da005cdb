"""Sample input for every source of the recipes, from what a Python installation has: its standard library, reasoning-gym.

A stand-in to try the whole path on real text without a download; not data to train a useful model on.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lclm_jax.data.prepare.shards import split_of
from lclm_jax.data.synthetic.corpus import Row, docstrings, standard_library
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import Progress, without_progress

EXERCISES = 4000  # problems of each sort
LONG = 40_000  # characters from which a document is long
MOST = 80_000  # characters of a module that is asked about


def write_samples(
    directory: str | Path, progress: Progress = without_progress
) -> dict[str, list[str]]:
    """Writes `NAME.jsonl` for every source in `SOURCES` and returns them as the input of each; the same on every run."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    inputs = {}
    for name in progress(SOURCES, "writing samples"):
        path = directory / f"{name}.jsonl"
        write_whole(path, "".join(json.dumps(row) + "\n" for row in SOURCES[name]()))
        inputs[name] = [str(path)]
    return inputs


@lru_cache(maxsize=1)
def _modules() -> list[tuple[str, str]]:
    return list(standard_library())


def code() -> Iterator[Row]:
    """Modules."""
    return ({"text": module, "split_group": path} for path, module in _modules())


def web() -> Iterator[Row]:
    """Pages: what a module says of itself, and the help on the language's topics."""
    yield from ({"text": page, "split_group": path} for path, page in _pages().items())
    from pydoc_data import topics

    yield from ({"text": text} for text in topics.topics.values())


def long() -> Iterator[Row]:
    """The pages of a package as one document, without those held out by themselves, and long modules."""
    packages: dict[str, list[str]] = defaultdict(list)
    for path, page in _pages().items():
        if split_of(path) == "train":
            packages[path.partition("/")[0]].append(page)
    yield from (
        {"text": "\n\n".join(pages), "split_group": name}
        for name, pages in packages.items()
        if sum(map(len, pages)) > LONG
    )
    yield from (
        {"text": module, "split_group": path} for path, module in _modules() if len(module) > LONG
    )


@lru_cache(maxsize=1)
def _pages() -> dict[str, str]:
    """The docstrings of every module that has any, one after another."""
    documented = ((path, docstrings(module)) for path, module in _modules())
    return {path: f"# {path}\n\n" + "\n\n".join(texts) for path, texts in documented if texts}


def instructions() -> Iterator[Row]:
    """Turns about functions: what one does, then how it is written."""
    for path, module in _modules():
        for name, source, text in _functions(module):
            turns = [
                ("user", f"This is {name} from {path}:\n\n{source}\n\nDescribe it."),
                ("assistant", text),
                ("user", f"Write {name} again, with its description in it."),
                ("assistant", f'"""{text}"""\n{source}'),
            ]
            yield _chat(turns, split_group=path)


def long_tasks() -> Iterator[Row]:
    """Whole modules, and the question what they define."""
    for path, module in _modules():
        defined = [f"- {name}: {text.splitlines()[0]}" for name, _, text in _functions(module)]
        if len(defined) > 2 and len(module) < MOST:
            asked = f"{module}\n\nWhich functions does {path} describe, and how?"
            yield _chat([("user", asked), ("assistant", "\n".join(defined))], split_group=path)


def reasoning() -> Iterator[Row]:
    """Word problems, thought through before they are answered."""
    for item in _exercises("gsm_symbolic"):
        answer = f"<think>\n{item['metadata']['answer_cot']}\n</think>\n\n{item['answer']}"
        yield _chat([("user", item["question"]), ("assistant", answer)])


def math() -> Iterator[Row]:
    """Sheets of worked problems."""
    problems = (
        f"{item['question']}\n\n{item['metadata']['answer_cot']}"
        for item in _exercises("gsm_symbolic", seed=EXERCISES)
    )
    return ({"text": "\n\n".join(sheet)} for sheet in _sheets(problems, 8))


def latex() -> Iterator[Row]:
    """Sheets of integrals."""
    from sympy import latex, sympify

    def typeset(item: Row) -> str:
        given, found = (
            latex(sympify(text)) for text in (item["metadata"]["integrand"], item["answer"])
        )
        return (
            f"\\[ \\int \\left( {given} \\right) \\, d{item['metadata']['variable']} = {found} \\]"
        )

    integrals = (typeset(item) for item in _exercises("simple_integration"))
    return (
        {"text": "\\section*{Integrals}\n" + "\n".join(sheet)} for sheet in _sheets(integrals, 16)
    )


def _functions(module: str) -> Iterator[tuple[str, str, str]]:
    """Name, source without the docstring, and docstring of every function that says what it does."""
    try:
        tree = ast.parse(module)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and len(node.body) > 1
            and (text := ast.get_docstring(node))
        ):
            body = node.body[1:]
            node.body = body
            yield node.name, ast.unparse(node), text


def _chat(turns: list[tuple[str, str]], **fields: Any) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **fields}


def _exercises(name: str, seed: int = 0) -> Iterator[Row]:
    import reasoning_gym

    yield from reasoning_gym.create_dataset(name, size=EXERCISES, seed=seed)


def _sheets(problems: Iterator[str], count: int) -> Iterator[list[str]]:
    while sheet := list(islice(problems, count)):
        yield sheet


SOURCES: dict[str, Callable[[], Iterator[Row]]] = {
    "web": web,
    "code": code,
    "long": long,
    "math": math,
    "latex": latex,
    "reasoning": reasoning,
    "instructions": instructions,
    "long_tasks": long_tasks,
    "corpus": web,  # for traces of EXPAND calls
}
