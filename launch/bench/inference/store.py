"""Seconds of a store's actions, by the number of its windows."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from launch.bench.accelerator.record import Record, Result
from launch.bench.inference.inputs import make_model, make_text, new_store
from launch.bench.inference.plan import Plan
from lclm_jax.evaluation.timing import middle, repeat, seconds_of
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.store import Store
from lclm_jax.inference.store.documents import Index
from lclm_jax.inference.store.entries import Entry
from lclm_jax.inference.store.objects import Objects
from lclm_jax.inference.store.windows import pack_window

WINDOWS_PER_DOCUMENT = 10
WRITTEN_AT_ONCE = 100  # documents
REPEATS = 5
NEW_DOCUMENT_TOKENS = 100


@dataclass(frozen=True)
class Actions(Result):
    """Seconds of each action: medians, but for `ls` and `gc`, which run once."""

    windows: int
    documents: int
    making_seconds: float  # of the store, object by object
    open_seconds: float
    get_seconds: float  # look-up of one document, without its latents
    add_seconds: float  # a new document of one window, encoded
    ls_seconds: float
    gc_seconds: float  # nothing is removed


def run(plan: Plan, record: Record):
    """Measure ascending sizes, up to the first whose store would take too long to make."""
    before = None
    for windows in plan.sizes.stores:
        seconds = before["making_seconds"] * windows / before["windows"] if before else 0.0
        if plan.is_too_long(record, name_of(windows), seconds):
            break
        call = partial(measure, plan, make_model(plan.sizes.model), windows)
        before = record.measure(name_of(windows), call) or before


def name_of(windows: int) -> str:
    return f"{windows} windows"


def measure(plan: Plan, model: LanguageModel, windows: int) -> Actions:
    """Make a store of documents of tiny windows, and time what its users do."""
    text = make_text(model.tokenizer, NEW_DOCUMENT_TOKENS)
    with new_store(plan.directory, model) as store:
        store.add_text("first", text)  # compiles
        documents = windows // WINDOWS_PER_DOCUMENT
        making = seconds_of(lambda: fill(store, model, documents))
        numbers = iter(range(2 * REPEATS))
        return Actions(
            windows,
            documents,
            making,
            median(lambda: Store(store.directory, model)),
            median(lambda: store.get(name_of_document(next(numbers)))),
            median(lambda: store.add_text(f"new {(n := next(numbers))}", f"{n} {text}")),
            seconds_of(store.ls),
            seconds_of(store.gc),
        )


def median(call: Callable[[], object]) -> float:
    """Return the median seconds of several calls."""
    return middle(repeat(call, least=REPEATS, most=REPEATS))


def fill(store: Store, model: LanguageModel, documents: int):
    """Write the objects of documents as `Store.add_text` does, without encoding anything."""
    objects = Objects(store.directory)
    window = pack_window(np.ones((1, model.config.decoder.width)), store.precision)
    for start in range(0, documents, WRITTEN_AT_ONCE):
        values: dict[str, bytes] = {}
        for number in range(start, min(start + WRITTEN_AT_ONCE, documents)):
            values |= document_objects(store, number, window)
        objects.write(values)


def document_objects(store: Store, number: int, window: bytes) -> dict[str, bytes]:
    """Return the objects of a document by key: its windows, text, index and entry."""
    count, text = WINDOWS_PER_DOCUMENT, f"text {number}".encode()
    digests = [hashlib.sha256(f"{number} {i}".encode()).hexdigest() for i in range(count)]
    keys = [f"windows/{store.model_id}/{digest[:3]}/{digest[3:]}" for digest in digests]
    index = Index(keys, np.ones(count, np.int64), np.arange(count)).to_bytes()
    entry = Entry(
        name=name_of_document(number),
        ratio=store.model.config.compression.ratio,
        model_id=store.model_id,
        model_name=store.model.name,
        precision=store.precision,
        window=store.model.config.compression.window,
        tokens=count,
        latents=count,
        characters=len(text),
        text=hashlib.sha256(text).hexdigest(),
        index=hashlib.sha256(index).hexdigest(),
        error=0.0,
        added="2026-01-01T00:00:00+00:00",
    )
    others = {f"texts/{entry.text}": text, f"indexes/{entry.index}": index}
    return {**dict.fromkeys(keys, window), **others, entry.key: entry.to_bytes()}


def name_of_document(number: int) -> str:
    return f"document {number}"
