"""KV caches of prompts read before, for later prompts that begin with the same positions."""

import threading
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import replicate
from lclm_jax.inference.generation import (
    allocate_cache,
    cache_size,
    positions_needed,
    prefill,
)
from lclm_jax.inference.prompts import Prompt, plan_chunks, shared_length, without_first
from lclm_jax.model.attention import Cache
from lclm_jax.typing import Array, Int, Params

DEFAULT_BUDGET = 2**30  # bytes, for devices that do not state their memory
BUDGET_SHARE = 8  # by default, kept caches may take this part of a device's memory


@dataclass(frozen=True, eq=False)
class Prefix:
    """The positions that a cache holds, and the parameters that read them."""

    read: Prompt
    cache: Cache
    weights: Params

    @property
    def bytes(self) -> int:
        """Bytes of keys and values, on all devices together."""
        return sum(x.nbytes for x in jax.tree.leaves((self.cache.keys, self.cache.values)))

    def begins(self, other: "Prefix") -> bool:
        """Return whether another cache begins with all that this one holds."""
        length = int(self.read.lengths[0])
        return self.weights is other.weights and shared_length(self.read, other.read) == length


class PrefixCache:
    """The caches of the prompts read last, so that what prompts share is read once.

    `budget` is in bytes. The newest cache is kept whatever its size, unless the budget is 0; older
    ones are kept while all of them fit. With a `length`, every cache has that many positions, and
    prompts must fit; else their length follows the prompts. Several threads may call it.
    """

    def __init__(self, budget: int, length: int | None = None):
        self.budget, self.length = budget, length
        self._prefixes: list[Prefix] = []  # the one used last is the last
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all caches kept."""
        with self._lock:
            return self._bytes()

    def clear(self):
        """Drop every cache."""
        with self._lock:
            self._prefixes = []

    def take(self, prompt: Prompt, weights: Params) -> tuple[Cache | None, int]:
        """Return a cache that begins with positions of a one-row prompt, and their number.

        At least one position of the prompt is not among them: its logits are needed. The caller
        may donate the cache. It is a copy if the positions after the shared ones may be of use to
        another prompt, and the budget allows a copy.
        """
        with self._lock:
            lengths = [_shared(prefix, prompt, weights) for prefix in self._prefixes]
            shared = max(lengths, default=0)
            if shared == 0:
                return None, 0
            prefix = self._prefixes.pop(lengths.index(shared))
            goes_on = shared < int(prefix.read.lengths[0]) - 1
            if goes_on and self._bytes() + 2 * prefix.bytes <= self.budget:
                self._prefixes.append(prefix)
                return jax.tree.map(jnp.copy, prefix.cache), shared
            return prefix.cache, shared

    def put(self, read: Prompt, cache: Cache, weights: Params):
        """Keep the cache of a one-row prompt, and no other that it begins with."""
        prefix = Prefix(read, cache, weights)
        with self._lock:
            self._prefixes = [known for known in self._prefixes if not known.begins(prefix)]
        self.make_room(prefix.bytes)
        with self._lock:
            if self.budget:
                self._prefixes.append(prefix)

    def make_room(self, needed: int):
        """Drop the caches used longest ago until `needed` more bytes fit the budget."""
        with self._lock:
            while self._prefixes and needed + self._bytes() > self.budget:
                del self._prefixes[0]

    def _bytes(self) -> int:
        return sum(prefix.bytes for prefix in self._prefixes)


def _shared(prefix: Prefix, prompt: Prompt, weights: Params) -> int:
    """Count the leading positions of a prompt that need not be read again."""
    if prefix.weights is not weights:
        return 0
    return min(shared_length(prefix.read, prompt), int(prompt.lengths[0]) - 1)


def default_budget(devices: np.ndarray) -> int:
    """Return a budget in bytes for a model on these devices, all of them together."""
    statistics = devices.flat[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    return limit // BUDGET_SHARE * devices.size if limit else DEFAULT_BUDGET


def prefill_rest(
    prefixes: PrefixCache, params: Params, prompt: Prompt, config: ModelConfig, room: int
) -> tuple[Array, Cache, Int[np.ndarray, "B"]]:
    """Run `prefill` on the positions of a prompt that no kept cache begins with.

    Returns the logits of the next token [B V], the cache, and the positions read of each row.
    """
    cache, shared = None, 0
    if len(prompt.tokens) == 1:
        cache, shared = prefixes.take(prompt, params)
    rest = without_first(prompt, shared) if shared else prompt
    rows = len(prompt.tokens)
    if cache is None:
        needed = positions_needed(plan_chunks(rest, config, prefixes.length), room)
        length = prefixes.length or cache_size(rows, needed)
        prefixes.make_room(cache_bytes(params, config, rows, length))
        cache = allocate_cache(params, config, rows, length)
    else:
        cache = replace(cache, end=replicate(np.int32(shared)))
        available = cache.length - shared
        needed = shared + positions_needed(plan_chunks(rest, config, available), room)
        if needed > cache.length and prefixes.length is None:
            cache = extend_cache(cache, cache_size(rows, needed))
    logits, cache = prefill(params, rest, config, room, cache, shared)
    return logits, cache, rest.lengths


def cache_bytes(params: Params, config: ModelConfig, rows: int, length: int) -> int:
    """Return the bytes of keys and values of a cache of `length` positions per row."""
    decoder = config.decoder
    numbers = 2 * decoder.layers * rows * decoder.kv_heads * decoder.head_dim
    return numbers * length * params["decoder"]["table"].dtype.itemsize


@partial(jax.jit, static_argnames="length")
def extend_cache(cache: Cache, length: int) -> Cache:
    """Return a copy of a cache with room for `length` positions per row."""

    def extended(x: jax.Array, axis: int) -> jax.Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, padding)

    return replace(
        cache,
        keys=jax.tree.map(lambda x: extended(x, x.ndim - 2), cache.keys),
        values=jax.tree.map(lambda x: extended(x, x.ndim - 2), cache.values),
        places=jax.tree.map(lambda x: extended(x, 1), cache.places),
    )
