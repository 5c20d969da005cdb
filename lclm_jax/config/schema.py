"""The settings of a model and of a training run, as frozen dataclasses.

Fields are typed and their ranges are checked when an instance is made (see settings.py). Each
default is stated here and nowhere else. A file in `configs/` is a program that returns a `Config`;
values.py reads and writes a config as JSON and as `key=value` arguments.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lclm_jax.config.settings import (
    MAX_INT32,
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

AxisSize = Annotated[int, Range(least=1, most=MAX_INT32, also=(-1,))]
Probability = Annotated[float, Range(least=0, most=1)]
Momentum = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True)
class TransformerConfig(Settings):
    """Shape of one tower: a Qwen3 transformer, or with `qk_norm=False` a Llama."""

    vocab: Size  # entries of the vocabulary
    width: Size  # of the residual stream
    layers: Size
    heads: Size  # query heads; a multiple of kv_heads
    kv_heads: Size  # key and value heads
    head_dim: Size  # even, for rotary positions
    mlp: Size  # hidden width of the MLP
    rope_theta: Positive = 1e6  # base of the rotary frequencies
    norm_eps: Positive = 1e-6  # added to the mean square in RMSNorm
    qk_norm: bool = True  # RMSNorm of each head's queries and keys
    causal: bool = True  # False: attention in both directions
    tied: bool = True  # the decoder's output head is its embedding table
    max_positions: Size = 32768  # longest sequence, in positions
    # Round rotary frequencies to bfloat16, as the original did when it loaded and trained in bf16.
    rounded_rope: bool = False
    # Standard deviation of fresh matrices. None: width ** -0.5, and zeros for the matrices that
    # write to the residual stream.
    initializer_range: NotNegative | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise ConfigError(
                "heads must be a multiple of kv_heads, "
                f"got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")


@dataclass(frozen=True)
class CompressionConfig(Settings):
    """The compression of tokens into latents (paper, section 3)."""

    ratio: Size = 16  # tokens per latent
    window: Size = 1024  # tokens of a window; a multiple of every ratio
    # How the encoder's states become latents: the mean of every `ratio` states, the state of an eos
    # marker for every `ratio` tokens, or the concatenation of every `ratio` states.
    pooling: Literal["mean", "eos", "concat"] = "mean"
    # Tokens of the neighbouring window that the encoder also reads: on the left and, where it is
    # bidirectional, on the right.
    overlap: Count = 0
    # Further ratios that a context may ask for; training draws from these and `ratio`.
    ratios: tuple[Size, ...] = ()

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
                "concat pooling has one ratio, "
                f"got ratio={self.ratio} and ratios={self.ratios}; use mean or eos"
            )

    @property
    def all_ratios(self) -> tuple[int, ...]:
        """Every ratio a context may have, the default first."""
        return (self.ratio, *(ratio for ratio in self.ratios if ratio != self.ratio))

    @property
    def latents_per_window(self) -> int:
        """Largest number of latents of a window, which the smallest ratio gives."""
        return self.window // min(self.all_ratios)


@dataclass(frozen=True)
class AdapterConfig(Settings):
    """The adapter from encoder to decoder: an MLP, and optionally attention among the latents.

    The attention layers let the latents of one context read each other, after the MLP (`mlp_attn`)
    or before it (`attn_mlp`).
    """

    kind: Literal["mlp", "mlp_attn", "attn_mlp"] = "mlp"
    layers: Size = 1  # attention layers; ignored by the kind `mlp`

    @property
    def attention(self) -> bool:
        """True where the adapter has attention layers."""
        return self.kind != "mlp"


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The two towers, the compression between them, and how they are computed."""

    encoder: TransformerConfig
    decoder: TransformerConfig
    compression: CompressionConfig = CompressionConfig()
    adapter: AdapterConfig = AdapterConfig()
    # Type of activations; the master weights stay float32.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
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
        """Width of a pooled state, which the adapter reads."""
        states = self.compression.ratio if self.compression.pooling == "concat" else 1
        return self.encoder.width * states

    @property
    def adapter_layers(self) -> TransformerConfig:
        """Shape of the adapter's attention layers.

        After the MLP they have the decoder's shape; before it the encoder's, as wide as the
        adapter's input. They are Qwen3 layers in every model (checkpoint format, "Behaviour").
        """
        before = dataclasses.replace(self.encoder, width=self.adapter_inputs)
        tower = before if self.adapter.kind == "attn_mlp" else self.decoder
        return dataclasses.replace(
            tower, layers=self.adapter.layers, qk_norm=True, causal=False, initializer_range=0.02
        )


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Number of devices along each mesh axis; -1 takes all that the other axes leave."""

    data: AxisSize = 1  # copies of the model, each with its own rows; a multiple of the slices
    fsdp: AxisSize = -1  # shards of the parameters, each with its own rows
    context: AxisSize = 1  # parts of the decoder's sequences
    tensor: AxisSize = 1  # parts of the heads and of the MLP

    def __post_init__(self):
        super().__post_init__()
        rest = [name for name, size in dataclasses.asdict(self).items() if size == -1]
        if len(rest) > 1:
            raise ConfigError(
                "at most one mesh axis may be -1 (all devices that are left), "
                f"got {', '.join(rest)}"
            )


@dataclass(frozen=True)
class DataConfig(Settings):
    """The training data of every stage: its directory, how examples are made, and the row budget.

    A row is one sequence of the decoder, packed with examples, and the windows of their contexts.
    """

    directory: Directory = "runs/data"  # output of launch.prepare
    batch_rows: Size = 256  # rows of a global batch
    row_positions: Size = 16384  # decoder positions of a row, after compression
    # Encoder windows of a row; launch.inspect_data suggests a number, and a stage may override it.
    row_windows: Size = 14
    packing_lookahead: Size = 1000  # examples the packer chooses from
    # Room for latents beyond those of full windows, as a share of them. The last latent of a short
    # context stands for fewer than `ratio` tokens: where short contexts share a window, its latents
    # would run out before the window is full.
    spare_latents: NotNegative = 0.125
    # Shortest and longest crop of a document, in tokens, drawn at random. None: the whole document,
    # as in the paper.
    crop_length: Interval | None = None
    # The same for the passages of reconstruction. None: the whole document.
    reconstruction_length: Interval | None = None
    request_wordings: Size = 100  # wordings of the reconstruction request to draw from
    min_segment_length: Size = 128  # shortest alternating segment, in tokens (paper, C.4)
    # Tokens trained on of a long document; of a shorter one it is half of them (paper, C.4).
    max_trained_tokens: Size = 8192
    # Relative frequency of each of the model's ratios, in the order of all_ratios; empty: uniform.
    ratio_weights: tuple[NotNegative, ...] = ()
    seed: Seed = 0  # of the order of examples and of all draws that make them

    def __post_init__(self):
        super().__post_init__()
        if self.ratio_weights and not sum(self.ratio_weights):
            raise ConfigError(
                f"ratio_weights must have a positive sum, or be none; got {self.ratio_weights}"
            )


@dataclass(frozen=True)
class Source(Settings):
    """An input of a recipe, and the kind of its documents."""

    name: FileName
    # Plain text: text, code, math, latex, and long for whole books. Chats, one a row: chat.
    # expand: texts, with or without a question and its answer, to be made into traces of an agent
    # that expands chunks. packed: the original's public training rows, which spell out turns and
    # memory tags.
    kind: Literal["text", "code", "long", "math", "latex", "chat", "expand", "packed"]


@dataclass(frozen=True)
class Recipe(Settings):
    """The input of launch.prepare: the sources, and the mix of streams to be read from them."""

    name: FileName
    sources: Annotated[tuple[Source, ...], NotEmpty()]
    streams: tuple["Stream", ...]
    # A directory with tokenizer.json, or a Hugging Face repository.
    tokenizer: Directory = "Qwen/Qwen3-4B-Instruct-2507"
    max_document_chars: Size = 50_000_000  # characters; a longer document is rejected
    max_rejected_rows: Count = 1000  # rejected rows of a source, beyond which preparation stops

    def __post_init__(self):
        super().__post_init__()
        names = [source.name for source in self.sources]
        unknown = {stream.source for stream in self.streams} - set(names)
        if unknown or len(set(names)) != len(names):
            raise ConfigError(
                "streams read from sources of different names, "
                f"got sources {names} and streams of {unknown}"
            )

    def without(self, name: str) -> "Recipe":
        """Return the recipe without a source and its streams; the other streams share its part.

        Raises ConfigError for a source that the recipe does not have.
        """
        names = [source.name for source in self.sources]
        if name not in names:
            raise ConfigError(f"recipe {self.name} has no source {name!r}; its sources are {names}")
        sources = tuple(source for source in self.sources if source.name != name)
        streams = tuple(stream for stream in self.streams if stream.source != name)
        return dataclasses.replace(self, sources=sources, streams=streams)


@dataclass(frozen=True)
class ParameterGroup(Settings):
    """The training of all parameters whose path matches a pattern."""

    pattern: Pattern  # a regular expression for the whole path
    learning_rate: NotNegative | None  # peak rate; None freezes the parameters
    weight_decay: NotNegative = 0.01  # of AdamW


@dataclass(frozen=True)
class Stream(Settings):
    """Training examples of one kind, made from one prepared source."""

    kind: Literal["interleaved", "sft", "reconstruction", "reasoning"]
    source: FileName
    share: NotNegative  # of the stage's trained tokens, relative to the other streams
    # Probability that a context stays plain text, without loss, drawn for each context of a record.
    plain_contexts: Probability = 0.0

    @property
    def name(self) -> str:
        """The name of the stream in logs and reports: "kind/source"."""
        return f"{self.kind}/{self.source}"


@dataclass(frozen=True)
class StageConfig(Settings):
    """One stage of training (paper, Table 1)."""

    name: FileName
    steps: Size
    # Tried in order, the first match decides; they must cover every parameter.
    groups: tuple[ParameterGroup, ...]
    streams: tuple[Stream, ...]
    # The step that reaches the peak rate; warm-up takes at most half of the steps.
    warmup_steps: Count = 250
    final_learning_rate: NotNegative = 1e-6  # rate of the last step
    # The encoder starts this stage as a copy of the decoder's first layers.
    encoder_from_decoder: bool = False
    directory: Location = ""  # of its sources, inside data.directory
    row_windows: Size | None = None  # encoder windows of a row; None: data.row_windows
    # False trains the decoder on the same examples with every context as plain text.
    compress: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.streams and not sum(stream.share for stream in self.streams):
            raise ConfigError(
                f"the shares of stage {self.name}'s streams must have a positive sum, all are 0"
            )

    @property
    def has_latents(self) -> bool:
        """True where the stage compresses some contexts, and does not read all as plain text."""
        return self.compress and any(stream.plain_contexts < 1 for stream in self.streams)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """AdamW, with the same constants in every stage."""

    beta1: Momentum = 0.9  # decay of the mean of gradients
    beta2: Momentum = 0.95  # decay of the mean of squared gradients
    eps: Positive = 1e-8  # added to the denominator
    clip: Positive | None = 1.0  # largest global gradient norm; None: no clipping


@dataclass(frozen=True)
class RunConfig(Settings):
    """A training run: its directory, checkpoints, logs, validation and limits."""

    directory: Directory = "runs/lclm"
    # The checkpoint whose parameters the first stage starts from; None: random parameters.
    init_from: Directory | None = None
    save_every: Size = 500  # steps between checkpoints
    keep: Size = 2  # newest checkpoints to keep, beside the last of every stage
    keep_every: Size | None = None  # also keep those whose step is a multiple of this; None: none
    log_every: Size = 20  # steps between log lines
    # Steps between validations on held-out examples; there is one after a stage's last step, too.
    # 0: no validation.
    validate_every: Count = 500
    validation_examples: Size = 64  # held-out examples of each stream
    max_skipped_steps: Size = 10  # consecutive non-finite steps after which training stops
    # Abort if no step finishes for this long (seconds); None disables.
    step_timeout: Positive | None = 3600.0
    tensorboard: bool = False  # also write the log for TensorBoard, in the run's directory
    # The Weights & Biases project that also receives the log; None: none.
    wandb: Annotated[str, NotEmpty()] | None = None
    loss_chunk: Size = 1024  # positions per device whose logits are in memory at once
    # Parts of a batch that are computed in turn to save memory; their gradients are summed.
    micro_batches: Size = 1
    seed: Seed = 0  # of random initial parameters


@dataclass(frozen=True)
class Config(Settings):
    """All settings of a training run: the model, its stages, and everything they share."""

    model: ModelConfig
    stages: Annotated[tuple[StageConfig, ...], NotEmpty()]  # in the order they run
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
        """Return the step of the run, counted over all stages, that is `step` of `stage`."""
        names = [earlier.name for earlier in self.stages]
        before = self.stages[: names.index(stage)]
        return sum(earlier.steps for earlier in before) + step
