"""The model: encode -> pool -> project -> place -> decode, and the call that joins them."""

from collections.abc import Callable
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
    """Encoder, adapter and decoder.

    Latents of a row are numbered window by window: latent p of window c is c * P + p.
    """

    config: ModelConfig

    def setup(self):
        c = self.config
        self.encoder = Transformer(c.encoder, c.remat, ("windows", None))
        self.adapter = Adapter(c)
        self.decoder = Transformer(c.decoder, c.remat)
        if not c.decoder.tied:
            shape, axes = (c.decoder.vocab, c.decoder.width), ("vocab", "table")
            self.head = parameter(self, "head", shape, axes, matrix_init(c.decoder))

    @typed
    def __call__(self, batch: Batch) -> Float[Array, "B T D"]:
        """Return the hidden states of every decoder position of a packed batch."""
        latents = self.compress(batch.windows)
        places = Places(batch.segments, batch.positions)
        hidden, _ = self.decode(batch.tokens, batch.slots, latents, places)
        return hidden

    @typed
    def compress(self, windows: Windows) -> Float[Array, "B M D"]:
        """Return the latents of windows of context, ready for the decoder."""
        pooled = self.pool(self.encode(windows), windows)
        return self.project(pooled, latent_places(windows))

    @typed
    def encode(self, windows: Windows) -> Float[Array, "B C W E"]:
        """Return the hidden states of every window position.

        Contexts that share a window do not see each other.
        """
        b, c, w = windows.tokens.shape
        segments, positions = (x.reshape(b * c, w) for x in (windows.segments, windows.positions))
        embedded = self.encoder.embed(windows.tokens.reshape(b * c, w))
        hidden, _ = self.encoder(embedded, Places(segments, positions))
        return hidden.reshape(b, c, w, -1)

    @typed
    def pool(self, hidden: Float[Array, "B C W E"], windows: Windows) -> Float[Array, "B M I"]:
        """Return one vector per latent; I is E, or R * E when pooling by concatenation."""
        b, c, w, e = hidden.shape
        hidden = hidden.reshape(b * c, w, e)
        groups = windows.groups.reshape(b * c, w)
        latents = windows.latent_segments.shape[-1]
        compression = self.config.compression
        if compression.pooling == "concat":
            pooled = pool_concat(hidden, groups, latents, compression.ratio)
        else:
            pooled = pool_mean(hidden, groups, latents)
        return pooled.reshape(b, c * latents, -1)

    @typed
    def project(self, pooled: Float[Array, "B M I"], places: Places) -> Float[Array, "B M D"]:
        """Bring pooled vectors to the decoder's width; `places` says which share a context."""
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
        """Return the hidden states of decoder positions and, given a cache, the cache after them.

        Slots number the latents of their own row, or of all rows where `latents` are [M D]. The
        cache keeps the first `count` positions, by default all.
        """
        x = place(self.decoder.embed(tokens), latents, slots)
        return self.decoder(x, places, cache, count)

    @typed
    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return the scores of the next token, in float32.

        Training never makes those of a whole sequence (see `loss`).
        """
        b, t, _ = hidden.shape
        if platform() == "gpu" and b * t == 1:
            # Of one row XLA makes a matrix-vector product, for which it casts the whole table.
            return self.logits(jnp.repeat(hidden, 8, axis=1))[:, :1]
        table = self.output_table()
        return jnp.einsum("BTD,VD->BTV", hidden, table, preferred_element_type=jnp.float32)

    @typed
    def output_table(self) -> Float[Array, "V D"]:
        """Return the weights of the head: the decoder's own table where they are tied."""
        return self.decoder.table if self.config.decoder.tied else self.head


def latent_places(windows: Windows) -> Places:
    """Return the place of every latent of a row [B M]: its context, and its position in it."""
    b = len(windows.latent_segments)
    return Places(windows.latent_segments.reshape(b, -1), windows.latent_positions.reshape(b, -1))


@typed
def place(
    embedded: Float[Array, "B T D"],
    latents: Float[Array, "B M D"] | Float[Array, "M D"],
    slots: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """Put latents into the decoder's sequence.

    Position t reads latent slots[t], or its token where slots[t] is -1.
    """
    is_slot = (slots >= 0)[..., None]
    numbers = jnp.maximum(slots, 0)
    if latents.ndim == 2:
        return jnp.where(is_slot, jnp.take(latents, numbers, axis=0), embedded)
    own = jnp.take_along_axis(latents, numbers[..., None], axis=1)
    return jnp.where(is_slot, own, embedded)


def apply(
    config: ModelConfig, params: Params, *inputs: Any, method: Callable[..., Any] = LCLM.__call__
) -> Any:
    """Run the model, or one of its methods, as a pure function of plain parameters."""
    return LCLM(config).apply({"params": params}, *inputs, method=method)


def cast(params: Params, dtype: str) -> Params:
    """Cast parameters to the dtype the model computes in; once, before the scan over layers."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def output_table(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
    """Return the weights of the head among `params`: the decoder's table where they are tied."""
    return params["decoder"]["table"] if config.decoder.tied else params["head"]
