"""Documents of random key-value pairs, questions about them, and passages of shuffled words: nothing in them can be guessed.

    cedar harbour: amber kestrel, stone river, paper window, ...

Every document is drawn anew, so that a held-out one holds other pairs of the same words. Titles of no word to three let pairs
stand at every place of the groups of tokens that become one latent.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sysconfig import get_python_version
from typing import Any

from lclm_jax.data.prepare.shards import split_of
from lclm_jax.data.recipe.transforms import read_requests
from lclm_jax.data.rows.raw_examples import example_text
from lclm_jax.data.synthetic import corpus
from lclm_jax.files.atomic import write_whole
from lclm_jax.progress import Progress, without_progress

WORDS = 256  # that pairs are made of
COUNTS = {"": 40_000, "_short": 20_000}  # documents of a source
PAIRS = {"": (16, 20), "_short": (2, 8)}  # of a document
TITLE = 3  # most words of a title
QUESTIONS = {"": 6, "_short": 3}
JUMBLED = {"": 40, "_short": 4}  # words of a jumble
KINDS = ("jumbles", "pairs", "reorderings", "lookups")
NAMES = ("docs", *(kind + length for length in COUNTS for kind in KINDS))
SHOWN = 4000  # documents of pairs that the tokenizer is trained on, and a tenth as many chats
WRITTEN = "corpus.json"  # beside the text: what it was made with
MADE_BY = {
    "python": get_python_version(),
    "version": 3,
}  # another one of either makes it be written again
Row = dict[str, Any]
Pair = tuple[str, str]
REORDER = " In another order:"


def write_corpus(
    directory: str | Path, vocab: int, progress: Progress = without_progress
) -> dict[str, list[str]]:
    """Writes `docs.jsonl`, the standard library's docstrings, a file of each kind of documents, long and short, and a tokenizer
    of `vocab` entries trained on them; reuses what is there. Returns the input of each source.

    The words are those of docstrings that are not held out; most are one token.
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
    """Writes of the documents of `write_corpus` those that are held out, and no tokenizer."""
    directory, settings = Path(directory), {"split": "held"}
    if not _is_written(directory, settings):
        drawn = draw_rows(progress)
        held = {
            name: [row for row in rows if _split_of_row(row) == "held"]
            for name, rows in drawn.items()
        }
        _write(directory, held, settings, progress)
    return _inputs(directory)


def draw_rows(progress: Progress = without_progress) -> dict[str, list[Row]]:
    """The documents of every source, the same at every call."""
    docs = corpus.documentation(list(progress(corpus.standard_library(), "reading modules")))
    texts = _trained_texts(docs)
    words = frequent_words(texts, WORDS)
    rows: dict[str, list[Row]] = {"docs": docs}
    for seed, length in zip((1, 5), COUNTS, strict=True):
        count, (least, most) = COUNTS[length], PAIRS[length]
        rows["jumbles" + length] = list(jumbles(texts, count, JUMBLED[length], seed))
        rows["pairs" + length] = list(pair_documents(words, count, least, most, seed + 1))
        rows["reorderings" + length] = list(reorderings(words, count, least, most, seed + 2))
        rows["lookups" + length] = list(
            lookups(words, count, least, most, QUESTIONS[length], seed + 3)
        )
    return rows


def _trained_texts(docs: Iterable[Row]) -> list[str]:
    return [row["text"] for row in docs if _split_of_row(row) == "train"]


def _split_of_row(row: Row) -> str:
    """The split that preparation gives a row."""
    return split_of(row.get("split_group") or example_text(row))


def _texts_of_tokenizer(rows: dict[str, list[Row]]) -> list[str]:
    texts = _trained_texts(rows["docs"])
    chosen = random.Random(0).sample(range(COUNTS[""]), SHOWN)
    for name, count in (("pairs", SHOWN), ("lookups", SHOWN // 10), ("reorderings", SHOWN // 10)):
        texts += [example_text(rows[name][i]) for i in chosen[:count]]
    return texts + [read_requests("text")[0]] * (SHOWN // 10)


def _inputs(directory: Path) -> dict[str, list[str]]:
    return {name: [str(directory / f"{name}.jsonl")] for name in NAMES}


def _is_written(directory: Path, settings: dict[str, Any]) -> bool:
    written = directory / WRITTEN
    return (
        written.exists() and json.loads(written.read_text(encoding="utf-8")) == settings | MADE_BY
    )


def _write(
    directory: Path, rows: dict[str, list[Row]], settings: dict[str, Any], progress: Progress
):
    directory.mkdir(parents=True, exist_ok=True)
    for name, (path,) in progress(_inputs(directory).items(), "writing text"):
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows[name]))
    write_whole(directory / WRITTEN, json.dumps(settings | MADE_BY))


def frequent_words(texts: Iterable[str], count: int) -> list[str]:
    """The words of four to eight lower-case letters that come most often, the most frequent first."""
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,8}\b", text))
    return [
        word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:count]
    ]


def draw_pairs(words: Sequence[str], rng: random.Random, least: int, most: int) -> list[Pair]:
    """Between `least` and `most` pairs; no key comes twice, a value may be a key too."""
    keys = rng.sample(words, rng.randint(least, most))
    return [(key, rng.choice(words)) for key in keys]


def draw_document(words: Sequence[str], rng: random.Random, pairs: Sequence[Pair]) -> str:
    """Pairs under a title."""
    return (
        "".join(f" {word}" for word in rng.sample(words, rng.randint(0, TITLE)))
        + ":"
        + spell(pairs)
    )


def spell(pairs: Sequence[Pair]) -> str:
    """
    >>> spell([("amber", "kestrel"), ("stone", "river")])
    ' amber kestrel, stone river,'
    """
    return "".join(f" {key} {value}," for key, value in pairs)


def pair_documents(
    words: Sequence[str], count: int, least: int, most: int, seed: int
) -> Iterator[Row]:
    rng = random.Random(seed)
    for _ in range(count):
        yield {"text": draw_document(words, rng, draw_pairs(words, rng, least, most))}


def lookups(
    words: Sequence[str], count: int, least: int, most: int, questions: int, seed: int
) -> Iterator[Row]:
    """Chats about a document of pairs: which value has this key? Several questions of one document, each a turn."""
    rng = random.Random(seed)
    for _ in range(count):
        pairs = draw_pairs(words, rng, least, most)
        asked = rng.sample(pairs, min(questions, len(pairs)))
        messages: list[Row] = []
        for key, value in asked:
            messages.append({"role": "user", "content": [{"text": f" {key}?"}]})
            messages.append({"role": "assistant", "content": f" {value}"})
        messages[0]["content"].insert(0, {"context": draw_document(words, rng, pairs)})
        yield {"messages": messages}


def reorderings(
    words: Sequence[str], count: int, least: int, most: int, seed: int
) -> Iterator[Row]:
    """Chats that ask for all pairs of a document in another order: a question about every pair in few tokens."""
    rng = random.Random(seed)
    for _ in range(count):
        pairs = draw_pairs(words, rng, least, most)
        content = [{"context": draw_document(words, rng, pairs)}, {"text": REORDER}]
        answer = {"role": "assistant", "content": spell(rng.sample(pairs, len(pairs)))}
        yield {"messages": [{"role": "user", "content": content}, answer]}


def jumbles(texts: Sequence[str], count: int, words: int, seed: int) -> Iterator[Row]:
    """Words of random texts in random order, as they stand there with punctuation."""
    rng = random.Random(seed)
    pool = [word for text in texts for word in text.split()]
    for _ in range(count):
        yield {"text": " " + " ".join(rng.choices(pool, k=words))}
