"""Random key-value pairs, questions about them, and shuffled words: text that cannot be guessed.

    cedar harbour: amber kestrel, stone river, paper window, ...

Every document is drawn independently, so held-out ones have other pairs of the same words. Titles
of zero to three words move the pairs to every position in the tokens of one latent.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sysconfig import get_python_version
from typing import Any

from lclm_jax.data.recipe.transforms import read_requests
from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.shards import split_of
from lclm_jax.data.synthetic import corpus
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import Progress, without_progress

WORD_COUNT = 256  # different words in pairs
# By the suffix of a source's name, for long and short documents:
COUNTS = {"": 40_000, "_short": 20_000}  # documents of each source
PAIRS = {"": (16, 20), "_short": (2, 8)}  # least and most pairs of a document
QUESTIONS = {"": 6, "_short": 3}  # at most, in a chat
JUMBLE_WORDS = {"": 40, "_short": 4}
SEEDS = {"": 1, "_short": 5}  # first of four consecutive seeds
MAX_TITLE_WORDS = 3
KINDS = ("jumbles", "pairs", "reorderings", "lookups")
NAMES = ("docs", *(kind + length for length in COUNTS for kind in KINDS))
TOKENIZER_DOCUMENTS = 4000  # documents of pairs to train the tokenizer on; a tenth as many chats
SETTINGS_FILE = "corpus.json"  # what the corpus was made with; a change writes it again
VERSIONS = {"python": get_python_version(), "version": 3}
Row = dict[str, Any]
Pair = tuple[str, str]
REORDER = " In another order:"


def write_corpus(
    directory: str | Path, vocab: int, progress: Progress = without_progress
) -> dict[str, list[str]]:
    """Write a file of each source in NAMES and a tokenizer of `vocab` entries; reuse existing ones.

    `docs` are the docstrings of the standard library; the others are of every kind, long and short.
    Their words occur in docstrings that are not held out, and most are one token. Returns the input
    of each source.
    """
    directory, settings = Path(directory), {"vocab": vocab}
    if not _is_written(directory, settings):
        rows = draw_rows(progress)
        for _ in progress(range(1), "training tokenizer"):
            corpus.train_tokenizer(_texts_of_tokenizer(rows), vocab).save(directory / "tokenizer")
        _write(directory, rows, settings, progress)
    return _inputs(directory)


def write_held_out(
    directory: str | Path, progress: Progress = without_progress
) -> dict[str, list[str]]:
    """Write only the held-out documents of `write_corpus`, and no tokenizer."""
    directory, settings = Path(directory), {"split": "held"}
    if not _is_written(directory, settings):
        held_out = {
            name: [row for row in rows if _split_of_row(row) == "held"]
            for name, rows in draw_rows(progress).items()
        }
        _write(directory, held_out, settings, progress)
    return _inputs(directory)


def draw_rows(progress: Progress = without_progress) -> dict[str, list[Row]]:
    """Return the documents of every source, the same in every call."""
    docs = corpus.documentation(list(progress(corpus.standard_library(), "reading modules")))
    texts = _trained_texts(docs)
    words = frequent_words(texts, WORD_COUNT)
    rows: dict[str, list[Row]] = {"docs": docs}
    for length, seed in SEEDS.items():
        count, (least, most) = COUNTS[length], PAIRS[length]
        rows["jumbles" + length] = list(jumbles(texts, count, JUMBLE_WORDS[length], seed))
        rows["pairs" + length] = list(pair_documents(words, count, least, most, seed + 1))
        rows["reorderings" + length] = list(reorderings(words, count, least, most, seed + 2))
        rows["lookups" + length] = list(
            lookups(words, count, least, most, QUESTIONS[length], seed + 3)
        )
    return rows


def _trained_texts(docs: Iterable[Row]) -> list[str]:
    return [row["text"] for row in docs if _split_of_row(row) == "train"]


def _split_of_row(row: Row) -> str:
    """Return the split that preparation gives a row."""
    return split_of(row.get("split_group") or example_text(row))


def _texts_of_tokenizer(rows: dict[str, list[Row]]) -> list[str]:
    texts = _trained_texts(rows["docs"])
    chosen = random.Random(0).sample(range(COUNTS[""]), TOKENIZER_DOCUMENTS)
    chats = TOKENIZER_DOCUMENTS // 10
    for name, count in (("pairs", TOKENIZER_DOCUMENTS), ("lookups", chats), ("reorderings", chats)):
        texts += [example_text(rows[name][i]) for i in chosen[:count]]
    return texts + [read_requests("text")[0]] * chats


def _inputs(directory: Path) -> dict[str, list[str]]:
    return {name: [str(directory / f"{name}.jsonl")] for name in NAMES}


def _is_written(directory: Path, settings: dict[str, Any]) -> bool:
    file = directory / SETTINGS_FILE
    return file.exists() and json.loads(file.read_text(encoding="utf-8")) == settings | VERSIONS


def _write(
    directory: Path, rows: dict[str, list[Row]], settings: dict[str, Any], progress: Progress
):
    directory.mkdir(parents=True, exist_ok=True)
    for name, (path,) in progress(_inputs(directory).items(), "writing text"):
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows[name]))
    write_whole(directory / SETTINGS_FILE, json.dumps(settings | VERSIONS))


def frequent_words(texts: Iterable[str], count: int) -> list[str]:
    """Return the most frequent words of four to eight lower-case letters, in that order."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,8}\b", text))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return ordered[:count]


def draw_pairs(words: Sequence[str], rng: random.Random, least: int, most: int) -> list[Pair]:
    """Draw between `least` and `most` pairs; keys differ, and a value may also be a key."""
    keys = rng.sample(words, rng.randint(least, most))
    return [(key, rng.choice(words)) for key in keys]


def draw_document(words: Sequence[str], rng: random.Random, pairs: Sequence[Pair]) -> str:
    """Return pairs under a random title."""
    title = rng.sample(words, rng.randint(0, MAX_TITLE_WORDS))
    return "".join(f" {word}" for word in title) + ":" + spell(pairs)


def spell(pairs: Sequence[Pair]) -> str:
    """Return pairs as text.

    >>> spell([("amber", "kestrel"), ("stone", "river")])
    ' amber kestrel, stone river,'
    """
    return "".join(f" {key} {value}," for key, value in pairs)


def pair_documents(
    words: Sequence[str], count: int, least: int, most: int, seed: int
) -> Iterator[Row]:
    """Yield documents of pairs."""
    rng = random.Random(seed)
    for _ in range(count):
        yield {"text": draw_document(words, rng, draw_pairs(words, rng, least, most))}


def lookups(
    words: Sequence[str], count: int, least: int, most: int, questions: int, seed: int
) -> Iterator[Row]:
    """Yield chats that ask for the values of some keys of a document, one in each turn."""
    rng = random.Random(seed)
    for _ in range(count):
        pairs = draw_pairs(words, rng, least, most)
        chosen = rng.sample(pairs, min(questions, len(pairs)))
        messages: list[Row] = []
        for key, value in chosen:
            messages.append({"role": "user", "content": [{"text": f" {key}?"}]})
            messages.append({"role": "assistant", "content": f" {value}"})
        messages[0]["content"].insert(0, {"context": draw_document(words, rng, pairs)})
        yield {"messages": messages}


def reorderings(
    words: Sequence[str], count: int, least: int, most: int, seed: int
) -> Iterator[Row]:
    """Yield chats that ask for all pairs of a document in another order, in few tokens."""
    rng = random.Random(seed)
    for _ in range(count):
        pairs = draw_pairs(words, rng, least, most)
        content = [{"context": draw_document(words, rng, pairs)}, {"text": REORDER}]
        answer = {"role": "assistant", "content": spell(rng.sample(pairs, len(pairs)))}
        yield {"messages": [{"role": "user", "content": content}, answer]}


def jumbles(texts: Sequence[str], count: int, words: int, seed: int) -> Iterator[Row]:
    """Yield random words of the texts, with their punctuation, as documents of `words` words."""
    rng = random.Random(seed)
    pool = [word for text in texts for word in text.split()]
    for _ in range(count):
        yield {"text": " " + " ".join(rng.choices(pool, k=words))}
