"""The PyTorch side of `launch.bench`: a plain LCLM around transformers' Qwen3.

Eager code and transformers' defaults: scaled_dot_product_attention with a mask only where rows are
packed, a DynamicCache, inference mode, fused AdamW, logits of trained positions only. It reads the
same batches and has the same weights as lclm_jax.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportMissingImports]
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from convert.hf.config import write_tower
from convert.hf.mapping import published_tensors, to_published
from launch.bench.work import Work
from lclm_jax.batch import Batch, Windows
from lclm_jax.config import ModelConfig, TransformerConfig
from lclm_jax.inference.compressor import WINDOWS_AT_ONCE
from lclm_jax.model.adapter import NORM_EPS
from lclm_jax.model.params import flatten, parameter_shapes
from lclm_jax.typing import Params

LOGITS_CHUNK = 2048  # positions whose logits are in memory at a time, with recomputation
Tensors = Mapping[str, torch.Tensor]


class Adapter(torch.nn.Module):
    """RMSNorm -> Linear -> GELU -> Linear."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = torch.nn.RMSNorm(config.encoder.width, eps=NORM_EPS)
        self.fc1 = torch.nn.Linear(config.encoder.width, config.decoder.width)
        self.fc2 = torch.nn.Linear(config.decoder.width, config.decoder.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))


class PlainLCLM(torch.nn.Module):
    """Encoder, adapter and decoder with mean pooling, on torch's default device."""

    def __init__(self, config: ModelConfig, attention: str = "sdpa", dtype: str = "float32"):
        super().__init__()
        self.encoder = Qwen3Model(_tower(config.encoder, "encoder", attention, dtype))
        self.adapter = Adapter(config)
        self.decoder = Qwen3ForCausalLM(_tower(config.decoder, "decoder", attention, dtype))

    def load(self, params: Params, config: ModelConfig) -> "PlainLCLM":
        """Set the weights from parameters of lclm_jax, and return the model."""
        for part in ("encoder", "adapter", "decoder"):
            getattr(self, part).load_state_dict(_published(params, config, part), strict=False)
        return self

    def compress(self, windows: Tensors) -> torch.Tensor:
        """Return the latents [B M D] of windows."""
        return self.adapter(self.pooled(windows))

    def pooled(self, windows: Tensors) -> torch.Tensor:
        """Return the mean encoder state [B M E] of each latent's tokens in windows [B C W].

        Tokens with group -1 belong to no latent.
        """
        b, c, p = windows["latent_segments"].shape
        rows = {name: x.reshape(b * c, -1) for name, x in windows.items()}
        hidden = self.encoder(
            input_ids=rows["tokens"],
            attention_mask=_mask(rows["segments"]),
            position_ids=rows["positions"],
            use_cache=False,
        ).last_hidden_state
        # Tokens of no latent are summed into an extra one, which is dropped.
        groups = torch.where(rows["groups"] >= 0, rows["groups"], p)[..., None]
        sums = hidden.new_zeros(b * c, p + 1, hidden.shape[-1]).scatter_add(
            1, groups.expand_as(hidden), hidden
        )
        counts = hidden.new_zeros(b * c, p + 1, 1).scatter_add(
            1, groups, torch.ones_like(hidden[..., :1])
        )
        return (sums / counts.clamp(min=1))[:, :p].reshape(b, c * p, -1)

    def embed(
        self, tokens: torch.Tensor, slots: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        """Return the decoder's input [B T D]: latents in their slots, embeddings elsewhere."""
        chosen = latents[torch.arange(len(slots))[:, None], slots.clamp(min=0)]
        return torch.where(
            (slots >= 0)[..., None], chosen, self.decoder.get_input_embeddings()(tokens)
        )

    def loss(
        self, batch: Tensors, windows: Tensors, packing: str = "mask", chunk: int | None = None
    ) -> torch.Tensor:
        """Return the mean cross-entropy over trained tokens.

        `packing` is "mask" to read a packed row whole with a mask, or "examples" to read its
        examples one after the other.
        """
        embedded = self.embed(batch["tokens"], batch["slots"], self.compress(windows))
        if packing == "mask":
            hidden = self.read(embedded, batch["positions"], _mask(batch["segments"]))
        else:
            bounds = _bounds(batch["segments"])
            parts = [
                self.read(embedded[:, a:b], batch["positions"][:, a:b], None) for a, b in bounds
            ]
            padding = embedded[:, bounds[-1][1] :] * 0
            hidden = torch.cat([*parts, padding], dim=1)
        trained = batch["weights"] > 0
        return self.cross_entropy(hidden[trained], batch["targets"][trained], chunk)

    def cross_entropy(
        self, hidden: torch.Tensor, targets: torch.Tensor, chunk: int | None
    ) -> torch.Tensor:
        """Return the mean over positions.

        `chunk` limits the positions whose logits are in memory at a time.
        """

        def summed(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(
                self.decoder.lm_head(hidden).float(), targets, reduction="sum"
            )

        if chunk is None:
            return summed(hidden, targets) / len(targets)
        parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        total = sum(checkpoint(summed, *part, use_reentrant=False) for part in parts)
        return total / len(targets)

    def read(
        self, embedded: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the hidden states [B T D] of the decoder."""
        decoder = self.decoder.model
        return decoder(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def prefill(
        self, tokens: torch.Tensor, slots: torch.Tensor, latents: torch.Tensor
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Return the logits [B V] of the next token, and the cache."""
        cache = DynamicCache(config=self.decoder.config)
        embedded = self.embed(tokens, slots, latents)
        scores = self.decoder(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits
        return scores[:, -1], cache

    def decode(self, scores: torch.Tensor, cache: DynamicCache, count: int) -> torch.Tensor:
        """Decode `count` tokens [B count] greedily, the first from the logits `scores`."""
        tokens = [scores.argmax(dim=-1, keepdim=True)]
        while len(tokens) < count:
            scores = self.decoder(
                input_ids=tokens[-1], past_key_values=cache, use_cache=True
            ).logits[:, -1]
            tokens.append(scores.argmax(dim=-1, keepdim=True))
        return torch.cat(tokens, dim=1)


class Inference:
    """Reading and answering; each task method prepares a task and returns the function to time."""

    def __init__(self, model: PlainLCLM, work: Work, device: str = "cpu"):
        self.model, self.answer, self.text = model, work.answer, work.text
        self.full, self.context = as_tensors(work.windows, device), as_tensors(work.context, device)
        self.tokens, self.slots = (
            torch.from_numpy(x.astype(np.int64))[None].to(device)
            for x in (work.asked.tokens, work.asked.slots)
        )

    def encode(self) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: self.model.compress(self.full))

    def first_scores(self) -> Callable[[], Any]:
        return lambda: self.prefill()[0]

    def first_token(self) -> Callable[[], Any]:
        return lambda: self.prefill()[0].argmax().item()

    def decode(self) -> Callable[[], Any]:
        scores, cache = self.prefill()
        return torch.inference_mode()(lambda: self.model.decode(scores, cache, self.answer))

    @torch.inference_mode()
    def prefill(self) -> tuple[torch.Tensor, DynamicCache]:
        """Return logits and cache of the prompt; WINDOWS_AT_ONCE windows are encoded at a time."""
        count = self.context["tokens"].shape[1]
        parts = [
            slice(start, start + WINDOWS_AT_ONCE) for start in range(0, count, WINDOWS_AT_ONCE)
        ]
        latents = [
            self.model.compress({name: x[:, part] for name, x in self.context.items()})
            for part in parts
        ]
        return self.model.prefill(self.tokens, self.slots, torch.cat(latents, dim=1))


class Training:
    """AdamW steps on one packed row.

    Weights and moments are float32, matrix products are computed in `dtype`. `recompute` recomputes
    activations to save memory.
    """

    def __init__(
        self,
        model: PlainLCLM,
        work: Work,
        device: str = "cpu",
        dtype: str = "float32",
        packing: str = "mask",
        recompute: bool = False,
    ):
        self.model, self.device, self.dtype, self.packing = (
            model,
            device,
            getattr(torch, dtype),
            packing,
        )
        self.batch, self.windows = (
            as_tensors(work.batch, device),
            as_tensors(work.batch.windows, device),
        )
        if recompute:
            for tower in (model.encoder, model.decoder):
                tower.gradient_checkpointing_enable(
                    gradient_checkpointing_kwargs={"use_reentrant": False}
                )
            model.train()
        self.chunk = LOGITS_CHUNK if recompute else None
        optimizer, (stage,) = work.config.optimizer, work.config.stages
        groups = [
            {
                "params": getattr(self.model, group.pattern.split("/")[0]).parameters(),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in stage.groups
        ]
        betas = (optimizer.beta1, optimizer.beta2)
        self.clip, self.optimizer = (
            optimizer.clip,
            torch.optim.AdamW(groups, betas=betas, eps=optimizer.eps, fused=True),
        )

    def loss(self) -> torch.Tensor:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.model.loss(self.batch, self.windows, self.packing, self.chunk)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()


class TorchSide:
    """All steps of `launch.bench`, on the CPU in float32."""

    def __init__(self, work: Work, params: Params):
        model = PlainLCLM(work.model).load(params, work.model)
        self.inference, self.training = Inference(model, work), Training(model, work)
        self.model, self.width = model, work.model.decoder.width

    def train(self) -> Callable[[], Any]:
        return self.training.step

    def encode(self) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: self.model.compress(self.inference.full))

    def first_token(self) -> Callable[[], Any]:
        return self.inference.first_token()

    def decode(self) -> Callable[[], Any]:
        return self.inference.decode()

    def plain_text(self) -> Callable[[], Any]:
        tokens = torch.from_numpy(self.inference.text.astype(np.int64))[None]

        def read() -> torch.Tensor:
            inputs = tokens, torch.full_like(tokens, -1), torch.zeros(1, 1, self.width)
            return self.model.prefill(*inputs)[0]

        return torch.inference_mode()(read)

    @torch.inference_mode()
    def results(self) -> dict[str, np.ndarray]:
        """Return the results of the untrained model that are compared with lclm_jax."""
        return {
            "loss": self.training.loss().numpy(),
            "latents": self.encode()().numpy()[0],
            "first scores": self.inference.prefill()[0].numpy(),
            "answer": self.decode()().numpy(),
            "scores after plain text": self.plain_text()().numpy(),
        }


def as_tensors(arrays: Batch | Windows, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return the arrays by name as tensors, integers as int64, which torch needs for indices."""
    fields = {name: x for name, x in vars(arrays).items() if isinstance(x, np.ndarray)}
    return {
        name: torch.from_numpy(x if x.dtype == np.float32 else x.astype(np.int64)).to(device)
        for name, x in fields.items()
    }


def _tower(config: TransformerConfig, part: str, attention: str, dtype: str) -> Qwen3Config:
    settings = write_tower(config, part, dtype, None)
    settings["attn_implementation"] = attention
    return Qwen3Config(**settings)


def _bounds(segments: torch.Tensor) -> list[tuple[int, int]]:
    """Return the start and end of every example in a batch of one row."""
    row = segments[0].tolist()
    starts = [t for t in range(len(row)) if row[t] and (t == 0 or row[t] != row[t - 1])]
    end = max(t for t in range(len(row)) if row[t]) + 1
    return list(zip(starts, [*starts[1:], end], strict=True))


def _published(params: Params, config: ModelConfig, part: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a component under transformers' names."""
    flat = jax.device_get(flatten(params))
    tensors = [
        tensor for tensor in published_tensors(parameter_shapes(config)) if tensor.part == part
    ]
    arrays = [
        (tensor, flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer])
        for tensor in tensors
    ]
    return {
        tensor.key: torch.from_numpy(to_published(array, tensor.transform).copy())
        for tensor, array in arrays
    }


def _mask(segments: torch.Tensor) -> torch.Tensor | None:
    """Return the causal attention mask [B 1 T T] of packed rows; True where attention is allowed.

    It is None where every row is one segment, as transformers expects it.
    """
    if bool((segments == segments[0, 0]).all()):
        return None
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]
