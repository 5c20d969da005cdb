"""Input files from Python's standard library and from seeded tasks of reasoning-gym."""

import ast
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from lclm_jax.data.chat.chat import CHATML
from lclm_jax.data.recipe.transforms import read_requests
from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.shards import split_of
from lclm_jax.data.text.tokenizer import (
    MEMORY_END,
    MEMORY_SLOT,
    MEMORY_START,
    PAD,
    TURN_END,
    TURN_START,
    Tokenizer,
)
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import Progress, without_progress

CONTROL = (PAD, TURN_START, TURN_END, MEMORY_START, MEMORY_END, MEMORY_SLOT)
# How Qwen splits text before it merges bytes (tokenizer.json, pre_tokenizer).
SPLIT = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # words, with the character before them
        r"\p{N}",  # single digits
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation
        r"\s*[\r\n]+|\s+(?!\S)|\s+",  # white space
    )
)
VERSION = 3  # of the written corpus; a change writes it again
MIN_DOCSTRING_CHARACTERS = 81
NAMES = ("code", "docs", "haystacks", "tasks")
Row = dict[str, Any]


def write_corpus(
    directory: str | Path,
    vocab: int,
    tasks: int,
    requests: int,
    progress: Progress = without_progress,
) -> dict[str, list[str]]:
    """Write a file of each source in NAMES and a tokenizer trained on them; reuse existing ones.

    `code` and `docs` are the standard library's modules and their docstrings, `tasks` are questions
    about a few short facts, and `haystacks` the facts of other tasks as plain documents. A module
    is held out together with its docstrings, unless they also occur in a module that is trained on.
    The tokenizer is trained on nothing that is held out. Returns the input of each source.
    """
    directory = Path(directory)
    inputs = {name: [str(directory / f"{name}.jsonl")] for name in NAMES}
    written = directory / "corpus.json"
    settings = {
        "vocab": vocab,
        "tasks": tasks,
        "requests": requests,
        "python": sysconfig.get_python_version(),
        "version": VERSION,
    }
    if written.exists() and json.loads(written.read_text(encoding="utf-8")) == settings:
        return inputs
    directory.mkdir(parents=True, exist_ok=True)
    modules = list(progress(standard_library(), "reading modules"))
    rows: dict[str, list[Row]] = {
        "code": [{"text": module, "split_group": path} for path, module in modules],
        "docs": documentation(modules),
        "tasks": list(progress(needle_tasks(tasks), "making tasks", tasks)),
        "haystacks": [
            {"text": facts_of(task)}
            for task in progress(needle_tasks(tasks, seed=tasks), "making haystacks", tasks)
        ],
    }
    texts = _tokenizer_texts(modules, rows, read_requests("text")[:requests])
    for _ in progress(range(1), "training tokenizer"):
        train_tokenizer(texts, vocab).save(directory / "tokenizer")
    for name in progress(NAMES, "writing text"):
        write_whole(inputs[name][0], "".join(json.dumps(row) + "\n" for row in rows[name]))
    write_whole(written, json.dumps(settings))
    return inputs


def _tokenizer_texts(
    modules: Iterable[tuple[str, str]], rows: dict[str, list[Row]], requests: Sequence[str]
) -> list[str]:
    """Return the texts that are not held out, each haystack with a request to repeat it."""
    texts = [module for path, module in modules if split_of(path) == "train"]
    tasks = [example_text(row) for row in rows["tasks"]]
    texts += [task for task in tasks if split_of(task) == "train"]
    facts = [row["text"] for row in rows["haystacks"] if split_of(row["text"]) == "train"]
    texts += [f"{text}\n{requests[i % len(requests)]}" for i, text in enumerate(facts)]
    return texts


def documentation(modules: Iterable[tuple[str, str]]) -> list[Row]:
    """Return the docstrings of modules, given as (path, source), as rows.

    A docstring of a held-out module is left out if it also occurs in one that is trained on.
    """
    documented = [(path, docstrings(module)) for path, module in modules]
    trained_text = "\n".join(
        text for path, texts in documented if split_of(path) == "train" for text in texts
    )
    return [
        {"text": text, "split_group": path}
        for path, texts in documented
        for text in texts
        if split_of(path) == "train" or text not in trained_text
    ]


def standard_library() -> Iterator[tuple[str, str]]:
    """Yield path and source of every module of Python's standard library but its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idle_test"} & set(parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield path.relative_to(root).as_posix(), text


def docstrings(module: str) -> list[str]:
    """Return the docstrings of a module that are long enough for a passage."""
    try:
        tree = ast.parse(module)
    except SyntaxError:  # a template, or a file broken on purpose
        return []
    nodes = (
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    )
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [text for text in texts if len(text) >= MIN_DOCSTRING_CHARACTERS]


def needle_tasks(count: int, seed: int = 0) -> Iterator[Row]:
    """Yield chats with a few facts as context and a question about one of them.

    Task i is made from `seed + i`, so two calls share tasks unless their seeds differ by `count`.
    """
    import reasoning_gym

    options = {"min_num_statements": 2, "max_num_statements": 4}
    for item in reasoning_gym.create_dataset("needle_haystack", size=count, seed=seed, **options):
        question = item["metadata"]["question"]
        facts = item["question"][: item["question"].index(question)].strip()
        content = [{"context": facts}, {"text": " " + question}]
        yield {
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": item["answer"]},
            ]
        }


def facts_of(task: Row) -> str:
    """Return the context of a needle task."""
    return task["messages"][0]["content"][0]["context"]


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab` entries, the last of which are the control tokens."""
    fast = FastTokenizer(models.BPE())
    split = pre_tokenizers.Split(pattern=_regex(SPLIT), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    shuffled = random.Random(0).sample(texts, len(texts))
    fast.train_from_iterator(shuffled, trainer)
    fast.add_special_tokens(list(CONTROL))
    return Tokenizer(fast.to_str(), CHATML)


def _regex(pattern: str):
    from tokenizers import Regex

    return Regex(pattern)
