"""The model: encode -> pool -> project -> place -> decode, five small functions and the call that joins them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch, Places, Windows
from lclm_jax.config import ModelConfig
from lclm_jax.distributed.sharding import platform
from lclm_jax.model.adapter import Adapter
from lclm_jax.model.attention import Cache
from lclm_jax.model.layers import matrix_init, parameter
from lclm_jax.model.pooling import pool_concat, pool_mean
from lclm_jax.model.transformer import Transformer
from lclm_jax.typing import Array, Float, Int, Params, typed


class LCLM(nn.Module):
    """Encoder, adapter and decoder. Latents of a row are numbered window by window: latent p of window c is c * P + p."""

    config: ModelConfig

    def setup(self):
        c = self.config
        self.encoder = Transformer(c.encoder, c.remat, ("windows", None))
        self.adapter = Adapter(c)
        self.decoder = Transformer(c.decoder, c.remat)
        if not c.decoder.tied:
            self.head = parameter(
                self,
                "head",
                (c.decoder.vocab, c.decoder.width),
                ("vocab", "table"),
                matrix_init(c.decoder),
            )

    @typed
    def __call__(self, batch: Batch) -> Float[Array, "B T D"]:
        """Hidden states of every decoder position of a packed batch."""
        latents = self.compress(batch.windows)
        return self.decode(
            batch.tokens, batch.slots, latents, Places(batch.segments, batch.positions)
        )[0]

    @typed
    def compress(self, windows: Windows) -> Float[Array, "B M D"]:
        """Windows of context to latents, ready for the decoder."""
        return self.project(self.pool(self.encode(windows), windows), latent_places(windows))

    @typed
    def encode(self, windows: Windows) -> Float[Array, "B C W E"]:
        """Hidden states of every window position; contexts that share a window do not see each other."""
        b, c, w = windows.tokens.shape
        rows = Places(windows.segments.reshape(b * c, w), windows.positions.reshape(b * c, w))
        hidden, _ = self.encoder(self.encoder.embed(windows.tokens.reshape(b * c, w)), rows)
        return hidden.reshape(b, c, w, -1)

    @typed
    def pool(self, hidden: Float[Array, "B C W E"], windows: Windows) -> Float[Array, "B M X"]:
        """One vector per latent; X is E, or R*E when pooling by concatenation."""
        b, c, w, e = hidden.shape
        p = windows.latent_segments.shape[-1]
        rows, groups = hidden.reshape(b * c, w, e), windows.groups.reshape(b * c, w)
        if self.config.compression.pooling == "concat":
            pooled = pool_concat(rows, groups, p, self.config.compression.ratio)
        else:
            pooled = pool_mean(rows, groups, p)
        return pooled.reshape(b, c * p, -1)

    @typed
    def project(self, pooled: Float[Array, "B M X"], places: Places) -> Float[Array, "B M D"]:
        """Pooled vectors to the decoder's width; `places` says which are of one context."""
        return self.adapter(pooled, places)

    @typed
    def decode(
        self,
        tokens: Int[Array, "B T"],
        slots: Int[Array, "B T"],
        latents: Float[Array, "B M D"] | Float[Array, "M D"],
        places: Places,
        cache: Cache | None = None,
        count: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states of decoder positions, and the cache with their first `count`, if one is given.

        Slots number the latents of their own row, or of all rows where `latents` are [M D].
        """
        x = place(self.decoder.embed(tokens), latents, slots)
        return self.decoder(x, places, cache, count)

    @typed
    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of the next token in float32. Training never calls this on a whole sequence (see `loss`)."""
        b, t, _ = hidden.shape
        if platform() == "gpu" and b * t == 1:
            # Of one row XLA makes a matrix-vector product, for which it casts the whole table.
            return self.logits(jnp.repeat(hidden, 8, axis=1))[:, :1]
        table = self.output_table()
        return jnp.einsum("BTD,VD->BTV", hidden, table, preferred_element_type=jnp.float32)

    @typed
    def output_table(self) -> Float[Array, "V D"]:
        return self.decoder.table if self.config.decoder.tied else self.head


def latent_places(windows: Windows) -> Places:
    """The place of every latent of a row [B M]: its context, and its position in it."""
    b = len(windows.latent_segments)
    return Places(windows.latent_segments.reshape(b, -1), windows.latent_positions.reshape(b, -1))


@typed
def place(
    embedded: Float[Array, "B T D"],
    latents: Float[Array, "B M D"] | Float[Array, "M D"],
    slots: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Puts latents into the decoder's sequence: position t reads latent slots[t], or its token where
    slots[t] is -1."""
    numbers = jnp.maximum(slots, 0)
    shared = latents.ndim == 2
    own = partial(jnp.take_along_axis, axis=1)
    chosen = jnp.take(latents, numbers, axis=0) if shared else own(latents, numbers[..., None])
    return jnp.where((slots >= 0)[..., None], chosen, embedded)


def apply(
    config: ModelConfig, params: Params, *inputs: Any, method: Callable[..., Any] = LCLM.__call__
) -> Any:
    """Runs the model, or one of its methods, as a pure function of plain parameters."""
    return LCLM(config).apply({"params": params}, *inputs, method=method)


def cast(params: Params, dtype: str) -> Params:
    """Parameters in the dtype the model computes in; done once, before the scan over layers."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def output_table(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
    """The head's weights as a parameter: the decoder's own table when tied."""
    return params["decoder"]["table"] if config.decoder.tied else params["head"]
