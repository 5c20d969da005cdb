"""Sample input for every source of the recipes, from the standard library and reasoning-gym.

It tries every step on real text without a download; it does not train a useful model.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lclm_jax.data.shards import split_of
from lclm_jax.data.synthetic.corpus import Row, docstrings, standard_library
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import Progress, without_progress

EXERCISES = 4000  # problems of each kind
LONG_DOCUMENT = 40_000  # characters; a longer document goes to the source `long`
MAX_TASK_MODULE = 80_000  # characters of a module in `long_tasks`


def write_samples(
    directory: str | Path, progress: Progress = without_progress
) -> dict[str, list[str]]:
    """Write `NAME.jsonl` for every source in SOURCES, always the same, and return the inputs."""
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
    """Pages: the docstrings of a module, and the help on topics of the language."""
    yield from ({"text": page, "split_group": path} for path, page in _pages().items())
    from pydoc_data import topics

    yield from ({"text": text} for text in topics.topics.values())


def long() -> Iterator[Row]:
    """Long modules, and the pages of a package as one document."""
    packages: dict[str, list[str]] = defaultdict(list)
    for path, page in _pages().items():
        if split_of(path) == "train":  # a page that is held out must not return in a package
            packages[path.partition("/")[0]].append(page)
    yield from (
        {"text": "\n\n".join(pages), "split_group": name}
        for name, pages in packages.items()
        if sum(map(len, pages)) > LONG_DOCUMENT
    )
    yield from (
        {"text": module, "split_group": path}
        for path, module in _modules()
        if len(module) > LONG_DOCUMENT
    )


@lru_cache(maxsize=1)
def _pages() -> dict[str, str]:
    """Return the joined docstrings of every module that has some, by its path."""
    documented = ((path, docstrings(module)) for path, module in _modules())
    return {path: f"# {path}\n\n" + "\n\n".join(texts) for path, texts in documented if texts}


def instructions() -> Iterator[Row]:
    """Chats about functions: describe one, then write it again."""
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
    """Whole modules, with a question about the functions they define."""
    for path, module in _modules():
        defined = [f"- {name}: {text.splitlines()[0]}" for name, _, text in _functions(module)]
        if len(defined) > 2 and len(module) < MAX_TASK_MODULE:
            question = f"{module}\n\nWhich functions does {path} describe, and how?"
            yield _chat([("user", question), ("assistant", "\n".join(defined))], split_group=path)


def reasoning() -> Iterator[Row]:
    """Word problems with the reasoning before the answer."""
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
        integrand = latex(sympify(item["metadata"]["integrand"]))
        integral = latex(sympify(item["answer"]))
        variable = item["metadata"]["variable"]
        return f"\\[ \\int \\left( {integrand} \\right) \\, d{variable} = {integral} \\]"

    integrals = (typeset(item) for item in _exercises("simple_integration"))
    return (
        {"text": "\\section*{Integrals}\n" + "\n".join(sheet)} for sheet in _sheets(integrals, 16)
    )


def _functions(module: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, source without docstring, and docstring of every documented function."""
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
            node.body = node.body[1:]
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
