"""Real text that every machine has: the running Python's standard library, and reasoning-gym's seeded tasks, as input files."""

import ast
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from lclm_jax.data.chat.chat import CHATML
from lclm_jax.data.prepare.shards import split_of
from lclm_jax.data.recipe.transforms import read_requests
from lclm_jax.data.rows.raw_examples import example_text
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
# How Qwen splits text before its merges: contractions, words, single digits, punctuation, white space.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VERSION = 3  # of what `write_corpus` writes; another one makes it write again
NAMES = ("code", "docs", "haystacks", "tasks")
Row = dict[str, Any]


def write_corpus(
    directory: str | Path,
    vocab: int,
    tasks: int,
    requests: int,
    progress: Progress = without_progress,
) -> dict[str, list[str]]:
    """Writes `code.jsonl`, `docs.jsonl`, `haystacks.jsonl`, `tasks.jsonl` and a tokenizer trained on them; reuses what is
    there. Returns the input of each source.

    `code` and `docs` are the standard library's modules and their docstrings, `tasks` are questions over a few short
    facts, `haystacks` the facts of other tasks as plain documents. A module is held out together with its docstrings,
    and a held-out docstring must not stand in any other module. The tokenizer sees nothing held out.
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
            {"text": facts_of(one)}
            for one in progress(needle_tasks(tasks, seed=tasks), "making haystacks", tasks)
        ],
    }
    asking = read_requests("text")[:requests]
    learned = [module for path, module in modules if split_of(path) == "train"]
    learned += [
        example_text(row) for row in rows["tasks"] if split_of(example_text(row)) == "train"
    ]
    facts = [row["text"] for row in rows["haystacks"] if split_of(row["text"]) == "train"]
    learned += [f"{text}\n{asking[i % len(asking)]}" for i, text in enumerate(facts)]
    for _ in progress(range(1), "training tokenizer"):
        train_tokenizer(learned, vocab).save(directory / "tokenizer")
    for name in progress(NAMES, "writing text"):
        write_whole(inputs[name][0], "".join(json.dumps(row) + "\n" for row in rows[name]))
    write_whole(written, json.dumps(settings))
    return inputs


def documentation(modules: Iterable[tuple[str, str]]) -> list[Row]:
    """Docstrings, those left out that are held out with their module and yet stand in one that is trained on."""
    documented = [(path, docstrings(module)) for path, module in modules]
    seen = "\n".join(
        text for path, texts in documented if split_of(path) == "train" for text in texts
    )
    return [
        {"text": text, "split_group": path}
        for path, texts in documented
        for text in texts
        if split_of(path) == "train" or text not in seen
    ]


def standard_library() -> Iterator[tuple[str, str]]:
    """Path and source of every module of the running Python's standard library, its tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idle_test"} & set(parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield path.relative_to(root).as_posix(), text


def docstrings(module: str) -> list[str]:
    """The docstrings of a module that are long enough to be a passage."""
    try:
        tree = ast.parse(module)
    except SyntaxError:  # a template or a deliberately broken file
        return []
    nodes = (
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    )
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [text for text in texts if len(text) > 80]


def needle_tasks(count: int, seed: int = 0) -> Iterator[Row]:
    """Who-did-what questions over a few facts: the facts are the context, the question stays plain.

    Task i is made from `seed + i`: two calls share tasks unless their seeds lie at least `count` apart.
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
    """The context of a needle task."""
    return task["messages"][0]["content"][0]["context"]


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries in all, Qwen's chat tokens and the three memory tokens last."""
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
