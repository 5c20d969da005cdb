"""Settings to try, as views, each with the controls that it must beat."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import Count, Settings, Size
from lclm_jax.data.records.windows import resolve_ratio
from lclm_jax.data.rows.expand_chat import CHUNK_TOKENS
from lclm_jax.evaluation.views import View

BASELINE, NOTHING = View("text"), View("nothing")
CANDIDATES = ("latents", "expand")  # views that compress
DEFAULT_RAW_CHUNKS = 2


@dataclass(frozen=True)
class Grid(Settings):
    """Settings to try.

    Attributes:
        ratios: tokens per latent; none means all ratios of the model.
        chunk_tokens: lengths of chunks, in tokens.
        raw_chunks: numbers of chunks that are read as text beside latents of the rest; 0 for none.
        expand: whether the agent reads the documents, too.
    """

    ratios: tuple[Size, ...] = ()
    chunk_tokens: tuple[Size, ...] = (CHUNK_TOKENS,)
    raw_chunks: tuple[Count, ...] = (DEFAULT_RAW_CHUNKS,)
    expand: bool = True

    def views(self, config: ModelConfig) -> list[View]:
        """Return the views to compare, those that take little memory first.

        Raises ConfigError for a ratio that the model was not trained for.
        """
        ratios = sorted(self.ratios or config.compression.all_ratios, reverse=True)
        for ratio in ratios:
            resolve_ratio(ratio, config)
        return list(dict.fromkeys(self._list_views(ratios)))

    def _list_views(self, ratios: list[int]) -> Iterator[View]:
        beside = [pair for pair in product(self.chunk_tokens, self.raw_chunks) if all(pair)]
        beside.sort(key=math.prod)
        yield NOTHING
        for tokens, count in beside:
            yield View("nothing", None, tokens, count)
        for ratio in ratios:
            for view in (
                View("latents", ratio),
                *(View("latents", ratio, *pair) for pair in beside),
            ):
                yield view
                yield truncation_of(view)
        if self.expand:
            for ratio, tokens in product(ratios, self.chunk_tokens):
                yield View("expand", ratio, tokens)
        yield BASELINE


def truncation_of(view: View) -> View:
    """Return the view of the first tokens, as many as a view has latents and tokens of chunks."""
    if view.name == "expand":
        return View("first", view.ratio)
    return View("first", view.ratio, view.chunk_tokens, view.raw_chunks)
