"""Views of a passage: as latents, as text, cut to as many positions as its latents, or left out."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lclm_jax.config import ConfigError
from lclm_jax.data.records import count_latents
from lclm_jax.inference.language_model import LanguageModel

ViewName = Literal["latents", "text", "nothing", "first", "random", "expand"]
VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
WITHOUT_RATIO = ("text", "nothing")


@dataclass(frozen=True)
class View:
    """A way to read passages.

    `latents` compresses them at `ratio`; `text` reads every token; `nothing` leaves them out.
    `first` keeps the first tokens, and `random` tokens drawn at random and in order, as many as
    there would be latents. `expand` lets the agent read latents of chunks and ask for their text.
    """

    name: ViewName
    ratio: int | None = None  # None for `text` and `nothing`

    @property
    def label(self) -> str:
        """Name for tables, such as "latents 16x"."""
        return f"{self.name} {self.ratio}x" if self.ratio else self.name

    @classmethod
    def of_label(cls, label: str) -> "View":
        """Return the view of a label. Raises ConfigError for another text."""
        name, _, ratio = label.partition(" ")
        if name not in VIEW_NAMES or not (ratio == "" or ratio.removesuffix("x").isdigit()):
            raise ConfigError(f"expected the label of a view, as in 'latents 16x', got {label!r}")
        return cls(name, int(ratio.removesuffix("x")) if ratio else None)


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


def cut_tokens(tokens: np.ndarray, view: View, model: LanguageModel) -> np.ndarray:
    """Return the tokens [T] of a passage that `first` and `random` keep.

    Draws of `random` depend on the tokens only.
    """
    count = min(count_latents(len(tokens), model.config, view.ratio), len(tokens))
    if view.name == "first":
        return tokens[:count]
    seed = int.from_bytes(hashlib.sha256(tokens.astype("<i4").tobytes()).digest()[:8], "little")
    kept = np.random.default_rng(seed).choice(len(tokens), count, replace=False)
    return tokens[np.sort(kept)]
