"""Proves that a conversion lost nothing.

python -m convert.verify HF_DIR CHECKPOINT [--torch] [--golden CASE_DIR]
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.table import Table

from convert.from_hf import Opened, open_hf, round_rope
from convert.hf.files import FileTensor, find_published, prefetch, read_json
from convert.hf.mapping import NUMPY_DTYPES, ConversionError, Tensor, match_tensors, split_rotary
from convert.to_hf import Saved
from convert.verify.golden import Check, Subject, Tolerance, replay
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.cli import make_parser, path, setting, show_table
from lclm_jax.config.settings import NotNegative
from lclm_jax.config.values import to_dict
from lclm_jax.data.chat.stop_tokens import find_turn_end_id
from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.distributed.sharding import one_device
from lclm_jax.errors import UserError
from lclm_jax.model.params import abstract_params
from lclm_jax.progress import track


class DifferenceError(UserError):
    """A checkpoint that differs from its source."""


@dataclass(frozen=True)
class TensorComparison:
    """A published tensor beside the one that the checkpoint would publish."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    published_hash: str  # sha256 of the bytes, shortened
    checkpoint_hash: str
    passed: bool


def compare_tensors(
    source: str | Path, checkpoint: str | Path, step: int | None = None
) -> Iterator[TensorComparison]:
    """Compare every tensor of `source` with `checkpoint` byte by byte.

    One is in memory at a time. Missing and unknown tensors and other settings are yielded, too.
    """
    saved, opened = Saved.open(checkpoint, step), open_hf(source)
    by_key, problems = match_tensors(split_rotary(opened.stored)[0], saved.tensors)
    yield from (
        TensorComparison(problem, (), "", "", "", False)
        for problem in [*problems, *compare_settings(opened, saved)]
    )
    for tensor in saved.tensors:
        other = by_key.get((tensor.part, tensor.key))
        if (
            isinstance(other, FileTensor)
            and other.shape == tensor.shape
            and other.dtype in NUMPY_DTYPES
        ):
            yield compare_tensor(tensor, other, saved)


def compare_settings(opened: Opened, saved: Saved) -> Iterator[str]:
    """Yield a line for every setting that differs, but for rounded rotary frequencies."""
    expected = round_rope(opened.config) if saved.config.decoder.rounded_rope else opened.config
    saved_settings, settings = to_dict(saved.config), to_dict(expected)
    yield from (
        f"model.json {name}: expected {settings[name]}, got {saved_settings[name]}"
        for name in saved_settings
        if saved_settings[name] != settings[name]
    )
    tokenizer = opened.published.decoder / "tokenizer.json"
    if (
        tokenizer.exists()
        and Tokenizer.load(saved.directory / "tokenizer").definition
        != Tokenizer.load(opened.published.decoder).definition
    ):
        yield f"tokenizer/tokenizer.json: expected {tokenizer}, word for word"


def compare_tensor(tensor: Tensor, other: FileTensor, saved: Saved) -> TensorComparison:
    """Compare the bytes of a published tensor with those that the checkpoint would publish."""
    checkpoint_hash, published_hash = hashlib.sha256(), hashlib.sha256()
    start = 0
    for block in prefetch(saved.blocks(tensor, other.dtype)):
        checkpoint_hash.update(np.ascontiguousarray(block).view(np.uint8).data)
        published_hash.update(other.read(start, start + len(block)).view(np.uint8).data)
        start += len(block)
    same = (
        checkpoint_hash.digest() == published_hash.digest() and saved.dtype(tensor) == other.dtype
    )
    name = f"{tensor.part} {tensor.key}"
    dtype = (
        other.dtype
        if saved.dtype(tensor) == other.dtype
        else f"{other.dtype}, kept as {saved.dtype(tensor)}"
    )
    return TensorComparison(
        name,
        tensor.shape,
        dtype,
        published_hash.hexdigest()[:12],
        checkpoint_hash.hexdigest()[:12],
        same,
    )


def read_subject(source: str | Path, checkpoint: str | Path) -> Subject:
    """Read the parameters in float32, and the special tokens that computations need."""
    saved = Saved.open(checkpoint)
    params = load_params(checkpoint, abstract_params(saved.config, one_device()))
    return Subject.of(saved.config, params, *special_tokens(source, saved))


def special_tokens(source: str | Path, saved: Saved) -> tuple[int, tuple[int, ...]]:
    """Return the marker of eos pooling and the tokens that end a turn.

    They are from the tokenizer or, without one, from config.json.
    """
    directory = saved.directory / "tokenizer"
    if directory.exists():
        tokenizer = Tokenizer.load(directory)
        end = find_turn_end_id(tokenizer)
        return tokenizer.memory.marker, () if end is None else (end,)
    published = find_published(source)
    marker = read_json(published.encoder / "config.json").get("pad_token_id")
    if marker is None and saved.config.compression.pooling == "eos":
        raise ConversionError(
            f"{published.encoder}: eos pooling needs a pad token; expected a tokenizer or "
            "pad_token_id"
        )
    end = read_json(published.decoder / "config.json").get("eos_token_id")
    return marker or 0, () if end is None else tuple(np.atleast_1d(end).tolist())


def main():
    parser = make_parser(__doc__)
    parser.add_argument(
        "source",
        type=path,
        help="the published checkpoint: decoder/, encoder/, adapter/ and model_config.json",
    )
    parser.add_argument("checkpoint", type=path, help="what convert.from_hf made of it")
    parser.add_argument(
        "--torch", action="store_true", help="compare logits with transformers' models too"
    )
    parser.add_argument(
        "--golden", type=path, metavar="CASE_DIR", help="replay a golden case instead"
    )
    parser.add_argument(
        "--tolerance",
        type=setting(NotNegative),
        default=Tolerance().absolute,
        help="largest absolute error of a golden case",
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if arguments.golden:
        subject = read_subject(arguments.source, arguments.checkpoint)
        show_checks(replay(arguments.golden, subject, Tolerance(arguments.tolerance)))
        return
    lines = list(track(compare_tensors(arguments.source, arguments.checkpoint), "comparing"))
    show_lines(lines)
    if arguments.torch:
        from convert.verify.torch_reference import compare_logits

        show_checks(
            compare_logits(arguments.source, read_subject(arguments.source, arguments.checkpoint))
        )


def show_lines(lines: list[TensorComparison]):
    """Print every tensor. Raises DifferenceError if a tensor differs."""
    table = Table("tensor", "shape", "dtype", "published", "checkpoint", "")
    for line in lines:
        shape = " x ".join(map(str, line.shape))
        table.add_row(
            line.name,
            shape,
            line.dtype,
            line.published_hash,
            line.checkpoint_hash,
            "same" if line.passed else "DIFFERS",
        )
    show_table(table)
    wrong = [line.name for line in lines if not line.passed]
    if wrong:
        raise DifferenceError(
            f"{len(wrong)} of {len(lines)} lines differ: {'; '.join(wrong[:10])}; convert again"
        )
    sys.stdout.write(f"all {len(lines)} tensors are the same, byte by byte\n")


def show_checks(checks: list[Check]):
    """Print every quantity. Raises DifferenceError for an error beyond the tolerance."""
    table = Table("quantity", "shape", "largest absolute error", "")
    for check in checks:
        shape = " x ".join(map(str, check.shape)) or "1"
        table.add_row(
            check.name, shape, f"{check.error:.2e}", "within" if check.passed else "BEYOND"
        )
    show_table(table)
    wrong = [check.name for check in checks if not check.passed]
    if wrong:
        raise DifferenceError(
            f"{len(wrong)} of {len(checks)} quantities are beyond the tolerance: "
            f"{', '.join(wrong[:10])}"
        )
    sys.stdout.write(f"all {len(checks)} quantities are within the tolerance\n")
