"""Every setting of a model and of a run, as frozen dataclasses: typed, hashable, each default stated once, here.

Annotations declare ranges, too (settings.py), and making an instance checks them. A file in
`configs/` is a program that returns a `Config`; config_values.py reads and writes one as JSON and
`key=value`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lclm_jax.config.settings import (
    MOST,
    Count,
    Directory,
    FileName,
    Interval,
    Location,
    NotEmpty,
    NotNegative,
    Pattern,
    Positive,
    Range,
    Seed,
    Settings,
    Size,
)
from lclm_jax.errors import ConfigError

AxisSize = Annotated[int, Range(least=1, most=MOST, also=(-1,))]
Momentum = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True)
class TransformerConfig(Settings):
    """Shape of one tower: a Qwen3 transformer, or with `qk_norm=False` a Llama."""

    vocab: Size
    width: Size
    layers: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    mlp: Size
    rope_theta: Positive = 1e6
    norm_eps: Positive = 1e-6
    qk_norm: bool = True
    causal: bool = True
    tied: bool = True  # the decoder's output head is its embedding table
    max_positions: Size = 32768
    rounded_rope: bool = False  # rotary frequencies rounded to bfloat16, as the original's bf16 loading and training did
    # Standard deviation of fresh matrices; None: width ** -0.5, residual branches 0.
    initializer_range: NotNegative | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads must be a multiple of kv_heads, got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")


@dataclass(frozen=True)
class CompressionConfig(Settings):
    """How tokens become latents (paper, section 3)."""

    ratio: Size = 16  # tokens per latent
    window: Size = 1024  # tokens the encoder reads at once
    pooling: Literal["mean", "eos", "concat"] = "mean"
    overlap: Count = 0  # neighbouring tokens a window also sees, left and, bidirectional, right
    ratios: tuple[Size, ...] = ()  # others a context may ask for; training draws from all of them

    def __post_init__(self):
        super().__post_init__()
        for ratio in self.all_ratios:
            if self.window % ratio:
                near = max(ratio, round(self.window / ratio) * ratio)
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
class AdapterConfig(Settings):
    """The projector's learned half: an MLP, and attention among the latents of a context after or before it."""

    kind: Literal["mlp", "mlp_attn", "attn_mlp"] = "mlp"
    layers: Size = 1  # of attention; the kind `mlp` has none

    @property
    def attention(self) -> bool:
        return self.kind != "mlp"


@dataclass(frozen=True)
class ModelConfig(Settings):
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
class MeshConfig(Settings):
    """Devices along each mesh axis; -1 takes all that are left."""

    data: AxisSize = 1  # copies of the model, each with rows of its own; one a slice
    fsdp: AxisSize = -1  # parts of the model, each with rows of its own
    context: AxisSize = 1  # parts of the decoder's sequences
    tensor: AxisSize = 1  # parts of heads and mlp

    def __post_init__(self):
        super().__post_init__()
        rest = [name for name, size in dataclasses.asdict(self).items() if size == -1]
        if len(rest) > 1:
            raise ConfigError(
                f"at most one mesh axis may be -1, all devices that are left, got {', '.join(rest)}"
            )


@dataclass(frozen=True)
class DataConfig(Settings):
    """The input of every stage: where prepared examples lie, how they are cut, and the two budgets of a packed row."""

    directory: Directory = "runs/data"  # what launch.prepare wrote
    batch_rows: Size = 256  # rows in a global batch
    row_positions: Size = 16384  # decoder positions of a row, after compression
    # Encoder windows of a row; launch.inspect_data suggests how many, and a stage may have its own number.
    row_windows: Size = 14
    packing_lookahead: Size = 1000  # examples the packer chooses from
    # Latents of a window beyond those of a full context, as a share of them: of short contexts that share a window, the last
    # latents stand for fewer tokens, and without these a window runs out of latents before it is read full.
    spare_latents: NotNegative = 0.125
    # Crops documents to a random length between these; None: whole, as in the paper.
    crop_length: Interval | None = None
    reconstruction_length: Interval | None = None  # the same for a passage to be reconstructed
    request_wordings: Size = 100  # how many of the wordings that ask for a passage are used
    min_segment_length: Size = 128  # tokens of the shortest alternating segment (paper, C.4)
    # Trainable tokens of a document too long for half of it to be trained on (paper, C.4).
    max_trained_tokens: Size = 8192
    # How often a context gets each of the model's ratios; none: each as often.
    ratio_weights: tuple[NotNegative, ...] = ()
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        if self.ratio_weights and not sum(self.ratio_weights):
            raise ConfigError(
                f"ratio_weights must have a positive sum, or be none; got {self.ratio_weights}"
            )


@dataclass(frozen=True)
class Source(Settings):
    """A source of a recipe: what its input holds. Documents are text of some kind, or one chat a row."""

    name: FileName
    # long: book-length; expand: texts, with a question and answer or without, to become traces of an agent that expands
    # chunks; packed: the original's public training rows, text with turns and memory tags written out
    kind: Literal["text", "code", "long", "math", "latex", "chat", "expand", "packed"]


@dataclass(frozen=True)
class Recipe(Settings):
    """What launch.prepare makes: sources, and the mix of streams to be read from them."""

    name: FileName
    sources: Annotated[tuple[Source, ...], NotEmpty()]
    streams: tuple["Stream", ...]
    # A directory with tokenizer.json, or a hub repository.
    tokenizer: Directory = "Qwen/Qwen3-4B-Instruct-2507"
    max_document_chars: Size = 50_000_000  # characters of a document; a longer one is refused
    max_rejected_rows: Count = 1000  # rows of a source that may be refused before preparation stops

    def __post_init__(self):
        super().__post_init__()
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
class ParameterGroup(Settings):
    """How the parameters whose path matches `pattern` are trained; `learning_rate=None` freezes them."""

    pattern: Pattern
    learning_rate: NotNegative | None
    weight_decay: NotNegative = 0.01


@dataclass(frozen=True)
class Stream(Settings):
    """Examples of one kind from one prepared source, and their share of the stage's trained tokens."""

    kind: Literal["interleaved", "sft", "reconstruction", "reasoning"]
    source: FileName
    share: NotNegative

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.source}"


@dataclass(frozen=True)
class StageConfig(Settings):
    """One stage of the recipe (paper, Table 1). Groups are tried in order and must cover every parameter."""

    name: FileName
    steps: Size
    groups: tuple[ParameterGroup, ...]
    streams: tuple[Stream, ...]
    warmup_steps: Count = (
        250  # the step that reaches the full rate; at most half of the steps are taken
    )
    final_learning_rate: NotNegative = 1e-6  # of the last step
    # The encoder starts this stage as a copy of the decoder's first layers.
    encoder_from_decoder: bool = False
    directory: Location = ""  # where in data.directory its sources lie
    row_windows: Size | None = None  # encoder windows of a row, if not data.row_windows
    # False trains the decoder on the same examples with every context as plain text.
    compress: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.streams and not sum(stream.share for stream in self.streams):
            raise ConfigError(
                f"the shares of stage {self.name}'s streams must have a positive sum, all are 0"
            )


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    eps: Positive = 1e-8
    clip: Positive | None = 1.0  # largest global gradient norm; None: gradients are not clipped


@dataclass(frozen=True)
class RunConfig(Settings):
    """The loop around the stages."""

    directory: Directory = "runs/lclm"
    # The checkpoint whose parameters the first stage begins with; None: random ones.
    init_from: Directory | None = None
    save_every: Size = 500  # steps
    keep: Size = 2  # newest checkpoints to keep, beside the last of every stage
    keep_every: Size | None = None  # and those of steps that are a multiple of it
    log_every: Size = 20  # steps
    # Steps between looks at held-out examples, also taken after a stage's last step; 0: never.
    validate_every: Count = 500
    validation_examples: Size = 64  # of every stream
    max_skipped_steps: Size = 10  # steps in a row that are not finite until training stops
    # Seconds a step may take, with all that comes between two, until the run is ended; None: any.
    step_timeout: Positive | None = 3600.0
    tensorboard: bool = False  # writes the log for TensorBoard, too, beside it
    # The project of Weights & Biases to send the log to, too.
    wandb: Annotated[str, NotEmpty()] | None = None
    loss_chunk: Size = 1024  # positions of a device whose logits exist at once
    micro_batches: Size = 1  # parts of a batch whose gradients add up, one part in memory at a time
    seed: Seed = 0


@dataclass(frozen=True)
class Config(Settings):
    model: ModelConfig
    stages: Annotated[tuple[StageConfig, ...], NotEmpty()]
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        super().__post_init__()
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"stages must have different names, got {names}")
        weights, ratios = self.data.ratio_weights, self.model.compression.all_ratios
        if weights and len(weights) != len(ratios):
            raise ConfigError(
                f"data.ratio_weights has one weight for each ratio of {ratios}, got {weights}"
            )

    def run_step(self, stage: str, step: int) -> int:
        """The step of the run, all stages in a row, that a step of a stage is."""
        return (
            sum(one.steps for one in self.stages[: [one.name for one in self.stages].index(stage)])
            + step
        )
