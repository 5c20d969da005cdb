"""Real text that every machine has: the running Python's standard library, and reasoning-gym's seeded tasks."""

import ast
import json
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from lclm_jax.data.chat import CHATML
from lclm_jax.data.sources import HELD_OUT, Raw, source_path, split_of, write_source
from lclm_jax.data.tokens import MEMORY_END, MEMORY_SLOT, MEMORY_START, PAD, TURN_END, TURN_START, Tokenizer
from lclm_jax.data.transforms import REQUESTS

CONTROL = (PAD, TURN_START, TURN_END, MEMORY_START, MEMORY_END, MEMORY_SLOT)
# How Qwen splits text before its merges: contractions, words, single digits, punctuation, white space.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VERSION = 1  # of what `prepare` writes; another one makes it write again
Progress = Callable[..., Iterable]  # as lclm_jax.progress.track: (items, label, total) -> the items


def silent(items: Iterable, label: str, total: int | None = None) -> Iterable:
    return items


def prepare(directory: str | Path, vocab: int, tasks: int, progress: Progress = silent) -> Path:
    """Writes tokenizer and sources `code`, `docs`, `haystacks`, `tasks` into `directory`; reuses what is already there.

    `code` and `docs` are the standard library's modules and their docstrings, `tasks` are questions over a few short
    facts, `haystacks` the facts of other tasks as plain documents. A module is held out together with its docstrings,
    and a held-out docstring must not stand in any other module. Returns the directory.
    """
    directory = Path(directory)
    manifest = directory / "manifest.json"
    settings = {
        "vocab": vocab,
        "tasks": tasks,
        "python": sysconfig.get_python_version(),
        "held_out": HELD_OUT,
        "version": VERSION,
    }
    if manifest.exists() and json.loads(manifest.read_text())["settings"] == settings:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    modules = list(progress(standard_library(), "reading modules"))
    chats = list(progress(needle_tasks(tasks), "making tasks", tasks))
    facts = [facts_of(chat) for chat in progress(needle_tasks(tasks, seed=tasks), "making haystacks", tasks)]
    trained_text = [module for module in modules if split_of(module) == "train"]
    said = [text for text in map(chat_text, chats) if split_of(text) == "train"]
    asked = [
        f"{text}\n{REQUESTS['text'][i % len(REQUESTS['text'])]}" for i, text in enumerate(facts) if split_of(text) == "train"
    ]
    for _ in progress(range(1), "training tokenizer"):
        tokenizer = train_tokenizer(trained_text + said + asked, vocab)
    tokenizer.save(directory / "tokenizer")
    counts = {}
    for split in ("train", "held"):
        own = [module for module in modules if split_of(module) == split]
        docs = [text for module in own for text in docstrings(module)]
        if split == "held":
            seen = "\n".join(documented for module in trained_text for documented in docstrings(module))
            docs = [text for text in docs if text not in seen]
        texts = {"code": own, "docs": docs, "haystacks": [text for text in facts if split_of(text) == split]}
        for source, chosen in texts.items():
            kind = "code" if source == "code" else "text"
            encoded = progress(tokenizer.encode_batch(chosen), f"writing {source}.{split}")
            raws = ({"tokens": tokens, "kind": kind} for tokens in encoded)
            counts[f"{source}.{split}"] = write_source(source_path(directory, source, split), raws)
        chosen = (chat for chat in chats if split_of(chat_text(chat)) == split)
        counts[f"tasks.{split}"] = write_source(source_path(directory, "tasks", split), chosen)
    manifest.write_text(json.dumps({"settings": settings, "examples": counts}, indent=2))
    return directory


def standard_library() -> Iterator[str]:
    """Source of every module of the running Python's standard library, its tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idle_test"} & set(parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield text


def docstrings(module: str) -> list[str]:
    """The docstrings of a module that are long enough to be a passage."""
    try:
        tree = ast.parse(module)
    except SyntaxError:  # a template or a deliberately broken file
        return []
    nodes = (
        node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    )
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [text for text in texts if len(text) > 80]


def needle_tasks(count: int, seed: int = 0) -> Iterator[Raw]:
    """Who-did-what questions over a few facts: the facts are the context, the question stays plain.

    Task i is made from `seed + i`: two calls share tasks unless their seeds lie at least `count` apart.
    """
    import reasoning_gym

    options = {"min_num_statements": 2, "max_num_statements": 4}
    for item in reasoning_gym.create_dataset("needle_haystack", size=count, seed=seed, **options):
        question = item["metadata"]["question"]
        facts = item["question"][: item["question"].index(question)].strip()
        content = [{"context": facts}, {"text": " " + question}]
        yield {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": item["answer"]}]}


def facts_of(task: Raw) -> str:
    """The context of a needle task."""
    return task["messages"][0]["content"][0]["context"]


def chat_text(chat: Raw) -> str:
    """Everything said in a chat and by whom, for training a tokenizer and for hashing."""
    said = []
    for message in chat["messages"]:
        content = message["content"]
        said.append(message["role"])
        said += [content] if isinstance(content, str) else [text for part in content for text in part.values()]
    return "\n".join(said)


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries in all, Qwen's chat tokens and the three memory tokens last."""
    fast = FastTokenizer(models.BPE())
    split = pre_tokenizers.Split(pattern=_regex(SPLIT), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(CONTROL), initial_alphabet=alphabet, show_progress=False)
    shuffled = random.Random(0).sample(texts, len(texts))
    fast.train_from_iterator(shuffled, trainer)
    fast.add_special_tokens(list(CONTROL))
    return Tokenizer(fast.to_str(), CHATML)


def _regex(pattern: str):
    from tokenizers import Regex

    return Regex(pattern)
