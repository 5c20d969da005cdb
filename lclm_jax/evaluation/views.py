"""Views of a passage: as latents, as text, cut to as many positions as its latents, or left out."""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.records import context_positions
from lclm_jax.inference.language_model import LanguageModel

ViewName = Literal["latents", "text", "nothing", "first", "random", "expand"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
WITHOUT_RATIO = ("text", "nothing")
LABEL = re.compile(
    r"(?P<name>[a-z]+)( (?P<ratio>\d+)x)?"
    r"( \+ (?P<raw>\d+)x(?P<beside>\d+)| of (?P<alone>\d+))?"
)


@dataclass(frozen=True)
class View:
    """A way to read passages.

    `latents` compresses them at `ratio`; `text` reads every token; `nothing` leaves them out.
    `first` keeps the first tokens, and `random` tokens drawn at random and in order, as many as
    fit the positions that latents and the tags around them take. `expand` lets the agent read
    latents of chunks and ask for their text.

    `latents` and `nothing` may keep `raw_chunks` chunks of `chunk_tokens` tokens as text, those
    that fit the question best; `first` then keeps as many tokens as latents and these chunks take.
    """

    name: ViewName
    ratio: int | None = None  # None for `text` and `nothing`
    chunk_tokens: int | None = None  # None without chunks as text; of `expand`, its default
    raw_chunks: int = 0

    @property
    def label(self) -> str:
        """Name for tables, such as "latents 16x".

        >>> View("latents", 16, 512, 2).label, View("expand", 16, 256).label
        ('latents 16x + 2x512', 'expand 16x of 256')
        """
        label = f"{self.name} {self.ratio}x" if self.ratio else self.name
        if self.raw_chunks:
            return f"{label} + {self.raw_chunks}x{self.chunk_tokens}"
        return f"{label} of {self.chunk_tokens}" if self.chunk_tokens else label

    @classmethod
    def of_label(cls, label: str) -> "View":
        """Return the view of a label. Raises ConfigError for another text."""
        match = LABEL.fullmatch(label)
        if match is None or match["name"] not in VIEW_NAMES:
            raise ConfigError(f"expected the label of a view, as in 'latents 16x', got {label!r}")
        ratio, raw, beside, alone = match["ratio"], match["raw"], match["beside"], match["alone"]
        tokens = beside or alone
        return cls(
            match["name"],  # pyright: ignore[reportArgumentType]
            int(ratio) if ratio else None,
            int(tokens) if tokens else None,
            int(raw or 0),
        )


def make_views(names: list[str], ratios: list[int], model: LanguageModel) -> list[View]:
    """Return the views to evaluate: those that depend on the ratio, once for each ratio.

    Raises ConfigError for an unknown view, and for a ratio that the model was not trained for.
    """
    if unknown := [name for name in names if name not in VIEW_NAMES]:
        raise ConfigError(f"views are {', '.join(VIEW_NAMES)}; got {', '.join(unknown)}")
    known = model.config.compression.all_ratios
    if wrong := [ratio for ratio in ratios if ratio not in known]:
        listed = ", ".join(map(str, sorted(known)))
        raise ConfigError(f"the model compresses at ratio {listed}; got {wrong[0]}")
    views: list[View] = []
    for name in dict.fromkeys(names):
        of_name = [None] if name in WITHOUT_RATIO else list(dict.fromkeys(ratios))
        views += [View(name, ratio) for ratio in of_name]  # pyright: ignore[reportArgumentType]
    return views


def cut_tokens(
    tokens: np.ndarray, view: View, model: LanguageModel, count: int | None = None
) -> np.ndarray:
    """Return the tokens [T] of a passage that `first` and `random` keep.

    They are `count`, by default as many as its latents take with the tags around them. Draws of
    `random` depend on the tokens only.
    """
    if count is None:
        count = context_positions(len(tokens), model.config, view.ratio)
    count = min(count, len(tokens))
    if view.name == "first":
        return tokens[:count]
    seed = int.from_bytes(hashlib.sha256(tokens.astype("<i4").tobytes()).digest()[:8], "little")
    kept = np.random.default_rng(seed).choice(len(tokens), count, replace=False)
    return tokens[np.sort(kept)]
