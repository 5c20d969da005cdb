"""Golden cases: outputs of the PyTorch original for given inputs, compared with lclm_jax.

A case is a directory with `inputs.json` and `outputs.npz`, and with `packed_inputs.json` and
`packed_outputs.npz` if it has a packed row. `replay` compares every quantity in the outputs, and
fails on an unknown one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.hf.files import read_json
from convert.hf.mapping import ConversionError, publish_params
from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import Context, Example, split_windows
from lclm_jax.inference.generation import generate_tokens
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.sampling import Sampling
from lclm_jax.model.lclm import LCLM, apply
from lclm_jax.scoring import token_losses
from lclm_jax.typing import Params

UNLABELLED = -100  # label of a token without loss in torch
POSITIONS = "logit_positions"  # positions of `logits`, not a quantity to compare
GREEDY_STEPS = (0, 1, -1)  # steps of `greedy_logits`


@dataclass(frozen=True)
class Tolerance:
    """Largest error that is allowed, absolute plus relative."""

    absolute: float = 2e-4
    relative: float = 0.0


EXACT = Tolerance(0.0)
NORM = Tolerance(1e-6, 1e-3)
GRADIENT = Tolerance(2e-4, 1e-3)


@dataclass(frozen=True)
class Check:
    """Comparison of one quantity; `passed` if every element is within the tolerance."""

    name: str
    shape: tuple[int, ...]
    error: float  # largest absolute difference
    passed: bool


@dataclass(frozen=True)
class Subject:
    """Model that a case is replayed with; it computes in float32, as the original did."""

    config: ModelConfig
    params: Params
    marker: int = 0  # token that eos pooling reads latents from
    stop: tuple[int, ...] = ()  # tokens that the original was forbidden to generate

    @classmethod
    def of(
        cls, config: ModelConfig, params: Params, marker: int = 0, stop: tuple[int, ...] = ()
    ) -> "Subject":
        """Return the model with its parameters cast to float32."""
        return cls(
            replace(config, dtype="float32"),
            jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), params),
            marker,
            stop,
        )


def replay(
    directory: str | Path, subject: Subject, tolerance: Tolerance = Tolerance()
) -> list[Check]:
    """Compare every quantity of a case with what `subject` computes.

    `tolerance` is that of activations and loss. Raises ConversionError for a quantity that is
    unknown, or that lacks inputs in the case.
    """
    directory = Path(directory)
    inputs, outputs = read_json(directory / "inputs.json"), read_arrays(directory / "outputs.npz")
    norms = {
        f"gradnorm/{name}": np.array(norm)
        for name, norm in inputs.get("param_grad_norms", {}).items()
    }
    checks = compare_case(CaseReplay(inputs, norms | outputs, subject), directory, tolerance)
    if (directory / "packed_outputs.npz").exists():
        packed = CaseReplay(
            read_json(directory / "packed_inputs.json"),
            read_arrays(directory / "packed_outputs.npz"),
            subject,
        )
        checks += [
            replace(check, name=f"packed {check.name}")
            for check in compare_case(packed, directory, tolerance)
        ]
    return checks


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file; pickled ones are refused."""
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: no such file; a golden case has inputs.json and outputs.npz"
        )
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def compare_case(case: "CaseReplay", directory: Path, tolerance: Tolerance) -> list[Check]:
    """Compare every quantity in the outputs of a case."""
    matches = {
        name: (rule, match)
        for name in case.outputs
        for rule in RULES
        if (match := re.fullmatch(rule[0], name))
    }
    unknown = sorted(set(case.outputs) - set(matches) - {POSITIONS})
    if unknown:
        raise ConversionError(
            f"{directory} holds quantities that cannot be replayed: {', '.join(unknown)}; "
            "add them to RULES"
        )
    checks = []
    for name, ((_, compute, own), match) in matches.items():
        try:
            computed = np.asarray(compute(case, *match.groups()))
        except KeyError as error:
            raise ConversionError(
                f"{directory}: {name} needs {error}, which the case's inputs do not have"
            ) from error
        checks.append(check(name, computed, case.outputs[name], own or tolerance))
    return checks


def check(name: str, computed: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> Check:
    """Compare two arrays. Another size, or a value that is not a number, fails."""
    if computed.size != expected.size:
        return Check(
            f"{name}: expected {list(expected.shape)}, got {list(computed.shape)}",
            expected.shape,
            np.inf,
            False,
        )
    difference = np.abs(
        computed.reshape(expected.shape).astype(np.float64) - expected.astype(np.float64)
    )
    allowed = tolerance.absolute + tolerance.relative * np.abs(expected.astype(np.float64))
    return Check(
        name,
        expected.shape,
        float(difference.max(initial=0.0)),
        bool(np.all(difference <= allowed)),
    )


@dataclass(frozen=True)
class CaseReplay:
    """Quantities that `subject` computes for the inputs of one row, each when it is first read."""

    inputs: Mapping[str, Any]
    outputs: dict[str, np.ndarray]
    subject: Subject

    @cached_property
    def example_lengths(self) -> list[int]:
        return self.inputs.get("sample_lens", [len(self.inputs["input_ids"])])

    @cached_property
    def batch(self) -> Batch:
        ends = np.cumsum(self.example_lengths)
        tokens, labels = self.inputs["input_ids"], self.inputs.get("labels")
        lengths = zip(ends, self.example_lengths, strict=True)
        return self._row(
            [self._example(tokens, labels, end - length, end) for end, length in lengths]
        )

    @cached_property
    def budget(self) -> RowBudget:
        """Budget of every row of the case, so that the model is compiled for a single shape."""
        config = self.subject.config
        answered = len(self.inputs.get("prompt_input_ids", ())) + len(
            self.outputs.get("greedy", ())
        )
        pieces = sum(
            -(-len(context) // config.compression.window) or 1
            for context in self.inputs["memory_token_ids"]
        )
        return RowBudget.for_model(
            config, max(len(self.inputs["input_ids"]), answered), max(1, pieces)
        )

    def _row(self, examples: Sequence[Example]) -> Batch:
        return assemble([fill_row(self.budget, examples)])

    def _example(
        self, tokens: list[int], labels: list[int] | None, start: int, end: int
    ) -> Example:
        ids = np.array(tokens[start:end], np.int32)
        slots, pieces, latents = np.full(len(ids), -1, np.int32), [], 0
        spans = zip(self.inputs["memory_positions"], self.inputs["memory_token_ids"], strict=True)
        for number, ((first, last), context) in enumerate(spans):
            if start <= first < end:
                slots[first - start : last - start] = np.arange(latents, latents + last - first)
                split = split_windows(
                    Context(np.array(context, np.int32)), self.subject.config, self.subject.marker
                )
                pieces += [replace(piece, context=number) for piece in split]
                latents += last - first
        targets = np.full(len(ids), UNLABELLED)
        targets[:-1] = (labels or tokens)[start + 1 : end]
        labelled = targets != UNLABELLED
        return Example(
            ids,
            np.where(labelled, targets, 0).astype(np.int32),
            labelled.astype(np.float32),
            slots,
            pieces,
        )

    @cached_property
    def results(self) -> tuple[np.ndarray, ...]:
        """Pooled vectors and latents in slot order [M, .], hidden states [T, D], logits [T, V]."""
        pooled, latents, hidden, logits = jax.device_get(
            forward(self.subject.params, self.batch, self.subject.config)
        )
        order, length = self.batch.slots[self.batch.slots >= 0], sum(self.example_lengths)
        return pooled[order], latents[order], hidden[:length], logits[:length]

    def of_context(self, kind: int, number: str) -> np.ndarray:
        """Return the rows of `results[kind]` that belong to one context."""
        bounds = np.cumsum([0, *(end - start for start, end in self.inputs["memory_positions"])])
        return self.results[kind][bounds[int(number)] : bounds[int(number) + 1]]

    @cached_property
    def empty(self) -> tuple[np.ndarray, ...]:
        """Pooled vector and latent of a context without tokens."""
        pieces = split_windows(
            Context(np.zeros(0, np.int32)), self.subject.config, self.subject.marker
        )
        token = np.zeros(1, np.int32)
        batch = self._row([Example(token, token, np.zeros(1, np.float32), token, pieces)])
        return tuple(
            np.asarray(x)[:1] for x in forward(self.subject.params, batch, self.subject.config)[:2]
        )

    @cached_property
    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """Loss, and its gradients by `part.key` of the published tensors."""
        loss, gradients = jax.device_get(
            loss_and_gradients(self.subject.params, self.batch, self.subject.config)
        )
        parts = publish_params(gradients)
        return loss, {
            f"{part}.{key}": tensor
            for part, tensors in parts.items()
            for key, tensor in tensors.items()
        }

    def gradient_norm(self, name: str) -> float:
        """Return the norm of a gradient over one tensor, or over all of a component."""
        of_part = [
            x for key, x in self.gradients[1].items() if key == name or key.startswith(f"{name}.")
        ]
        return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in of_part)))

    @property
    def prompt(self) -> Prompt:
        tokens = np.array(self.inputs["prompt_input_ids"], np.int32)[None]
        slots = np.where(self.batch.slots >= 0, np.cumsum(self.batch.slots >= 0) - 1, -1).astype(
            np.int32
        )
        latents = self.results[1][None]
        lengths = np.array([tokens.shape[1]], np.int32)
        return Prompt.of_arrays(tokens, slots[:, : tokens.shape[1]], latents, lengths)

    def generated(self, name: str, penalty: str | None) -> np.ndarray:
        """Return as many greedy tokens as the original has, with the end of the turn forbidden."""
        steps = len(self.outputs[name])
        sampling = Sampling(repetition_penalty=float(penalty or 1.0), min_tokens=steps)
        inputs = (self.prompt, self.subject.config, steps, self.subject.stop)
        return generate_tokens(self.subject.params, *inputs, sampling=sampling)[0][0]

    def greedy_logits(self) -> np.ndarray:
        """Return the scores of GREEDY_STEPS from one pass over prompt and original answer."""
        prompt = self.inputs["prompt_input_ids"]
        tokens = [*prompt, *self.outputs["greedy"].tolist()]
        batch = self._row([self._example(tokens, None, 0, len(tokens))])
        logits = forward(self.subject.params, batch, self.subject.config)[3]
        steps = np.arange(len(prompt), len(tokens))[list(GREEDY_STEPS)]
        return np.asarray(logits)[steps - 1]

    def logits(self) -> np.ndarray:
        """Return the logits at the positions of the case, by default at all."""
        all_positions = np.arange(sum(self.example_lengths))
        return self.results[3][self.outputs.get(POSITIONS, all_positions)]


# Pattern of a quantity in the outputs, its computation, its tolerance (default: of activations).
RULES: tuple[tuple[str, Callable[..., Any], Tolerance | None], ...] = (
    (r"input_ids", lambda case: case.inputs["input_ids"], EXACT),
    (r"labels", lambda case: case.inputs["labels"], EXACT),
    (r"latents_(\d+)", lambda case, number: case.of_context(0, number), None),
    (r"adapted_(\d+)", lambda case, number: case.of_context(1, number), None),
    (r"latents", lambda case: case.results[0], None),
    (r"adapted", lambda case: case.results[1], None),
    (r"empty_latent", lambda case: case.empty[0], None),
    (r"empty_adapted", lambda case: case.empty[1], None),
    (r"hidden_last", lambda case: case.results[2], None),
    (r"logits", CaseReplay.logits, None),
    (r"logsumexp", lambda case: jax.nn.logsumexp(case.results[3], axis=-1), None),
    (r"argmax", lambda case: case.results[3].argmax(axis=-1), EXACT),
    (r"loss", lambda case: case.gradients[0], None),
    (r"grad_?norm[_/](.+)", CaseReplay.gradient_norm, NORM),
    (r"grad/(.+)", lambda case, name: case.gradients[1][name], GRADIENT),
    (r"(greedy(?:_rep([\d.]+))?)", CaseReplay.generated, EXACT),
    (r"greedy_logits", CaseReplay.greedy_logits, None),
)


@partial(jax.jit, static_argnames="config")
def forward(params: Params, batch: Batch, config: ModelConfig):
    """Return pooled vectors and latents [M, .], hidden states [T, D], logits [T, V] of one row."""
    pooled = apply(
        config,
        params,
        batch.windows,
        method=lambda model, windows: model.pool(model.encode(windows), windows),
    )
    latents = apply(config, params, batch.windows, method=LCLM.compress)
    hidden = apply(config, params, batch)
    return pooled[0], latents[0], hidden[0], apply(config, params, hidden, method=LCLM.logits)[0]


@partial(jax.jit, static_argnames="config")
def loss_and_gradients(params: Params, batch: Batch, config: ModelConfig):
    """Return the mean loss over labelled positions, and its gradients."""

    def objective(params):
        summed, *_ = token_losses(params, batch, config, loss_chunk=1024)
        return summed / jnp.sum(batch.weights)

    return jax.value_and_grad(objective)(params)
