"""Every setting of a model and of a run, as frozen dataclasses: typed, hashable, each default stated once, here.

A file in `configs/` is a program that returns a `Config`; config_values.py reads and writes one as JSON and `key=value`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lclm_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A setting that does not exist or cannot hold the value it was given."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of one tower: a Qwen3 transformer, or with `qk_norm=False` a Llama."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    qk_norm: bool = True
    causal: bool = True
    tied: bool = True  # the decoder's output head is its embedding table
    max_positions: int = 32768
    rounded_rope: bool = False  # rotary frequencies rounded to bfloat16, as the original's bf16 loading and training did
    initializer_range: float | None = (
        None  # standard deviation of fresh matrices; None: width ** -0.5, residual branches 0
    )

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads must be a multiple of kv_heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")


@dataclass(frozen=True)
class CompressionConfig:
    """How tokens become latents (paper, section 3)."""

    ratio: int = 16  # tokens per latent
    window: int = 1024  # tokens the encoder reads at once
    pooling: Literal["mean", "eos", "concat"] = "mean"
    overlap: int = (
        0  # neighbouring tokens a window also sees, on the left and, bidirectional, on the right
    )
    ratios: tuple[
        int, ...
    ] = ()  # other ratios a context may ask for; training draws from all of them

    def __post_init__(self):
        if self.ratio < 1 or self.window < 1 or self.overlap < 0:
            raise ConfigError(
                f"ratio and window must be positive and overlap not negative, got {self}"
            )
        for ratio in self.all_ratios:
            if ratio < 1 or self.window % ratio:
                near = max(ratio, round(self.window / max(ratio, 1)) * ratio)
                raise ConfigError(
                    f"window must be a multiple of ratio, got window={self.window}, ratio={ratio}; "
                    f"set compression.window={near} or another ratio"
                )
        if self.ratios and self.pooling == "concat":
            raise ConfigError(
                f"concat pooling has one ratio, got ratio={self.ratio} and ratios={self.ratios}; use mean or eos"
            )

    @property
    def all_ratios(self) -> tuple[int, ...]:
        """Every ratio a context may have, the default first."""
        return (self.ratio, *(ratio for ratio in self.ratios if ratio != self.ratio))

    @property
    def latents_per_window(self) -> int:
        """Most latents a window may hold: at the smallest ratio."""
        return self.window // min(self.all_ratios)


@dataclass(frozen=True)
class AdapterConfig:
    """The projector's learned half: an MLP, and attention among the latents of a context after or before it."""

    kind: Literal["mlp", "mlp_attn", "attn_mlp"] = "mlp"
    layers: int = 1  # of attention; the kind `mlp` has none

    def __post_init__(self):
        if self.layers < 1:
            raise ConfigError(
                f"adapter.layers must be positive, got {self.layers}; for no attention set adapter.kind=mlp"
            )

    @property
    def attention(self) -> bool:
        return self.kind != "mlp"


@dataclass(frozen=True)
class ModelConfig:
    encoder: TransformerConfig
    decoder: TransformerConfig
    compression: CompressionConfig = CompressionConfig()
    adapter: AdapterConfig = AdapterConfig()
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16"  # of activations; master weights stay float32
    )
    # What a layer recomputes in its backward pass: all; all but attention; all but matrix products
    # and attention; nothing. Each needs less time and more memory than the one before.
    remat: Literal["full", "attention", "dots", "none"] = "full"

    @property
    def window_length(self) -> int:
        """Positions of one encoder row: a window, the neighbours it sees, and its eos markers."""
        compression = self.compression
        sides = 1 if self.encoder.causal else 2
        markers = compression.latents_per_window if compression.pooling == "eos" else 0
        return compression.window + sides * compression.overlap + markers

    @property
    def adapter_inputs(self) -> int:
        """Width of what the pooling hands to the adapter."""
        return self.encoder.width * (
            self.compression.ratio if self.compression.pooling == "concat" else 1
        )

    @property
    def adapter_layers(self) -> TransformerConfig:
        """Shape of the adapter's attention layers: after the MLP the decoder's, before it the encoder's, as wide as its input.

        A whole Qwen3 layer in any model (checkpoint format, "Behaviour").
        """
        before = dataclasses.replace(self.encoder, width=self.adapter_inputs)
        tower = before if self.adapter.kind == "attn_mlp" else self.decoder
        return dataclasses.replace(
            tower, layers=self.adapter.layers, qk_norm=True, causal=False, initializer_range=0.02
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes all that are left."""

    data: int = 1  # copies of the model, each with rows of its own; one a slice
    fsdp: int = -1  # parts of the model, each with rows of its own
    context: int = 1  # parts of the decoder's sequences
    tensor: int = 1  # parts of heads and mlp


@dataclass(frozen=True)
class DataConfig:
    """The input of every stage: where prepared examples lie, how they are cut, and the two budgets of a packed row."""

    directory: str = "runs/data"  # what launch.prepare wrote
    rows: int = 256  # rows in a global batch
    positions: int = 16384  # decoder positions of a row, after compression
    windows: int = 14  # encoder windows of a row; launch.inspect suggests how many, and a stage may have its own number
    lookahead: int = 1000  # examples the packer chooses from
    # Latents of a window beyond those of a full context, as a share of them: of short contexts that share a window, the last
    # latents stand for fewer tokens, and without these a window runs out of latents before it is read full.
    spare_latents: float = 0.125
    passage: tuple[int, int] | None = (
        None  # crops documents to a random length between these; None: whole, as in the paper
    )
    reconstruction: tuple[int, int] | None = None  # the same for a passage to be reconstructed
    requests: int = 100  # how many of the wordings that ask for a passage are used
    shortest_segment: int = 128  # tokens of the shortest alternating segment (paper, C.4)
    trainable: int = (
        8192  # trainable tokens of a document too long for half of it to be trained on (paper, C.4)
    )
    ratio_weights: tuple[
        float, ...
    ] = ()  # how often a context gets each of the model's ratios; none: each as often
    seed: int = 0

    def __post_init__(self):
        if self.rows < 1 or self.positions < 1 or self.lookahead < 1:
            raise ConfigError(
                f"data.rows, data.positions and data.lookahead must be positive, got {self}"
            )


@dataclass(frozen=True)
class Source:
    """A source of a recipe: what its input holds. Documents are text of some kind, or one chat a row."""

    name: str
    # long: book-length; expand: texts, with a question and answer or without, to become traces of an agent that expands
    # chunks; packed: the original's public training rows, text with turns and memory tags written out
    kind: Literal["text", "code", "long", "math", "latex", "chat", "expand", "packed"]


@dataclass(frozen=True)
class Recipe:
    """What launch.prepare makes: sources, and the mix of streams to be read from them."""

    name: str
    sources: tuple[Source, ...]
    streams: tuple["Stream", ...]
    tokenizer: str = (
        "Qwen/Qwen3-4B-Instruct-2507"  # a directory with tokenizer.json, or a hub repository
    )
    longest: int = 50_000_000  # characters of a document; a longer one is refused
    most_rejected: int = 1000  # rows of a source that may be refused before preparation stops

    def __post_init__(self):
        names = [source.name for source in self.sources]
        strange = {stream.source for stream in self.streams} - set(names)
        if strange or len(set(names)) != len(names):
            raise ConfigError(
                f"streams read from sources of different names, got sources {names} and streams of {strange}"
            )

    def without(self, name: str) -> "Recipe":
        """The recipe with one source and its streams left out; the other streams share its part."""
        if name not in [source.name for source in self.sources]:
            raise ConfigError(
                f"recipe {self.name} has no source {name!r}; its sources are {[one.name for one in self.sources]}"
            )
        sources = tuple(source for source in self.sources if source.name != name)
        return dataclasses.replace(
            self, sources=sources, streams=tuple(one for one in self.streams if one.source != name)
        )


@dataclass(frozen=True)
class Group:
    """How the parameters whose path matches `pattern` are trained; `rate=None` freezes them."""

    pattern: str
    rate: float | None
    decay: float = 0.01


@dataclass(frozen=True)
class Stream:
    """Examples of one kind from one prepared source, and their share of the stage's trained tokens."""

    kind: Literal["interleaved", "sft", "reconstruction", "reasoning"]
    source: str
    share: float

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.source}"


@dataclass(frozen=True)
class StageConfig:
    """One stage of the recipe (paper, Table 1). Groups are tried in order and must cover every parameter."""

    name: str
    steps: int
    groups: tuple[Group, ...]
    streams: tuple[Stream, ...]
    warmup: int = 250
    final_rate: float = 1e-6
    encoder_from_decoder: bool = (
        False  # the encoder starts this stage as a copy of the decoder's first layers
    )
    directory: str = ""  # where in data.directory its sources lie
    windows: int | None = None  # encoder windows of a row, if not data.windows
    compress: bool = (
        True  # False trains the decoder on the same examples with every context as plain text
    )


@dataclass(frozen=True)
class OptimizerConfig:
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # largest global gradient norm


@dataclass(frozen=True)
class RunConfig:
    """The loop around the stages."""

    directory: str = "runs/lclm"
    begin: str | None = (
        None  # the checkpoint whose parameters the first stage begins with; None: random ones
    )
    save_every: int = 500  # steps
    keep: int = 2  # newest checkpoints to keep, beside the last of every stage
    keep_every: int | None = None  # and those of steps that are a multiple of it
    log_every: int = 20  # steps
    validate_every: int = 500  # steps between looks at held-out examples, also taken after a stage's last step; 0: never
    validation_examples: int = 64  # of every stream
    most_skipped: int = 10  # steps in a row that are not finite until training stops
    patience: float | None = (
        3600.0  # seconds a step may take, with all that comes between two, until the run is ended; None: any
    )
    tensorboard: bool = False  # writes the log for TensorBoard, too, beside it
    wandb: str | None = None  # the project of Weights & Biases to send the log to, too
    loss_chunk: int = 1024  # positions of a device whose logits exist at once
    micro_batches: int = 1  # parts of a batch whose gradients add up, one part in memory at a time
    seed: int = 0


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    stages: tuple[StageConfig, ...]
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"stages must have different names, got {names}")

    def run_step(self, stage: str, step: int) -> int:
        """The step of the run, all stages in a row, that a step of a stage is."""
        return (
            sum(one.steps for one in self.stages[: [one.name for one in self.stages].index(stage)])
            + step
        )
