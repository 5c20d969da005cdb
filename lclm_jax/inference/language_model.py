"""A trained model: load a checkpoint, compress text, generate from latents and text.

Nothing waits for the device until an answer is read: windows are dispatched while the text is
still being tokenized, latents stay on the device, and the prompt's chunks are dispatched after.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.checkpoint.model_files import read_model_files
from lclm_jax.checkpoint.steps import load_params
from lclm_jax.compilation import enable_cache
from lclm_jax.config import ModelConfig
from lclm_jax.config.settings import expand_home
from lclm_jax.data.chat import Message, find_stop_ids
from lclm_jax.data.records import Context, Span, Tokens
from lclm_jax.data.text.tokenizer import TextError, Tokenizer, count_parts
from lclm_jax.distributed.sharding import make_mesh, one_device, platform, serving_mesh
from lclm_jax.inference.answers import Answer, Answering, Seed, Stream
from lclm_jax.inference.compressor import Compressor
from lclm_jax.inference.conversation import Conversation
from lclm_jax.inference.device_queue import DeviceQueue
from lclm_jax.inference.latents import Latents, LatentStarts, starts_of_latents
from lclm_jax.inference.prefixes import PrefixCache, default_budget
from lclm_jax.inference.prompts import Prompt
from lclm_jax.inference.rendering import (
    PromptRecord,
    lay_out_prompt,
    render_chat,
    render_parts,
    split_content,
    split_parts,
)
from lclm_jax.inference.sampling import GREEDY, Sampling
from lclm_jax.model.params import abstract_params
from lclm_jax.model.unstacked import is_unstacked, prefers_unstacked, split_layers
from lclm_jax.progress import Progress, without_progress
from lclm_jax.typing import Params

Parts = str | Latents | Sequence[str | Latents]  # of a prompt


class LanguageModel:
    """An LCLM with its tokenizer, on the devices of `mesh` (by default, one device).

    Assign `model.params = params` to replace the parameters. `weights` is the same tree in serving
    layout: on CPUs and GPUs the layers of most decoders are unstacked (`model.unstacked`).

    The caches of the last prompts are kept for prompts that begin as they do (`prefixes`);
    `model.prefixes.budget` limits their bytes, by default to an eighth of the devices' memory.
    Several threads may call a model: their answers advance side by side.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        name: str = "",
    ):
        self.config, self.tokenizer, self.mesh = config, tokenizer, mesh or one_device()
        self.name = name
        self.queue = DeviceQueue(self.mesh)
        self.prefixes = PrefixCache(default_budget(self.mesh.devices))
        self.params = params

    @property
    def params(self) -> Params:
        """Parameters as a nested dict with stacked layers; a copy if `weights` is unstacked."""
        decoder = self.weights["decoder"]
        if not is_unstacked(decoder["layers"]):
            return self.weights
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *decoder["layers"])
        return {**self.weights, "decoder": {**decoder, "layers": stacked}}

    @params.setter
    def params(self, params: Params):
        self.prefixes.clear()
        with self.queue.turn():
            self.weights = serving_params(params, self.config)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens at which generation ends (`data.chat.find_stop_ids`)."""
        return find_stop_ids(self.tokenizer)

    # --- compressing ---

    @property
    def compressor(self) -> Compressor:
        """The encoder and the adapter, for windows and contexts."""
        marker = self.tokenizer.memory.marker
        return Compressor(self.weights, self.config, self.queue, marker)

    def compress(
        self, text: str, ratio: int | None = None, progress: Progress = without_progress
    ) -> Latents:
        """Compress a text into latents, at the model's default ratio or another one.

        The latents can be used in any prompt, beside others; they know their text and the
        characters that each stands for. `ratio` is in tokens per latent; pass
        `lclm_jax.progress.track` as `progress` to see how far a long text is.

        Raises TextError for an empty text, and ConfigError for a ratio that the model was not
        trained for.
        """
        if not isinstance(text, str) or not text:
            kind = "an empty string" if text == "" else type(text).__name__
            raise TextError(f"expected text to compress, got {kind}")
        parts = self.tokenizer.encode_stream(text)
        tracked = progress(parts, "compressing", count_parts(text))
        latents = self.compressor.compress(tracked, ratio)
        return latents.with_text(text, lambda: self.find_latent_starts(text, ratio))

    def find_latent_starts(self, text: str, ratio: int | None = None) -> LatentStarts:
        """Return the first token and character of every latent of a text."""
        offsets = [offsets for _, offsets in self.tokenizer.encode_stream_with_offsets(text)]
        return starts_of_latents(np.concatenate(offsets), self.config, ratio)

    def compress_tokens(self, tokens: Tokens, ratio: int | None = None) -> Latents:
        """Compress tokens [T] into latents; see `compress`.

        An empty context becomes one latent (see `data.records.split_windows`).
        """
        return self.compressor.compress([np.asarray(tokens)], ratio)

    def compress_all(self, contexts: Sequence[Context]) -> list[Latents]:
        """Compress several contexts; short ones share windows."""
        return self.compressor.compress_all(contexts)

    def compress_contexts(self, records: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Replace the contexts in lists of parts by their latents; all are compressed together."""
        contexts = [part for record in records for part in record if isinstance(part, Context)]
        latents = iter(self.compress_all(contexts))
        return [
            [next(latents) if isinstance(part, Context) else part for part in record]
            for record in records
        ]

    def compress_content(self, content: Any) -> Any:
        """Replace the contexts in the content of a message, so they are compressed only once."""
        parts = split_content(content, self.tokenizer)
        return self.compress_contexts([parts])[0] if isinstance(parts, list) else parts

    # --- generating ---

    def generate(
        self, parts: Parts, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> str:
        """Return the assistant's answer to one user turn made of text and latents.

            model.generate([model.compress(report), "What does it conclude?"], max_tokens=64)

        Raises the errors of `chat`.
        """
        return self.answer(self.prompt(parts), max_tokens, sampling, seed)[0].text

    def stream(
        self, parts: Parts, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Stream:
        """Return an iterator over the text of `generate`, piece by piece as it is decoded."""
        return self.stream_answer(self.prompt(parts), max_tokens, sampling, seed)

    def generate_batch(
        self,
        prompts: Sequence[Parts],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: Seed = 0,
    ) -> list[Answer]:
        """Return the answer to each of several user turns, which are read and decoded together.

        `seed` is an integer, or one for each prompt: an answer does not depend on the prompts
        beside it. Raises the errors of `chat`.
        """
        records = [self.render(user_turn(parts)) for parts in prompts]
        return self.answer(self.read(records), max_tokens, sampling, seed) if records else []

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the assistant's next turn, of up to `max_tokens` tokens.

        The content of a message is a string, in which memory tags mark the text to compress, or a
        list of parts. Put untrusted text into a list: in its strings, tags are plain characters.
        `tools` are JSON signatures; `settings` are further variables of the chat template, such as
        `enable_thinking`.

        Raises TextError for a malformed message or a prompt that is empty or too long, ConfigError
        for wrong `max_tokens` or `seed`, LatentsError for latents of another width, and
        NotFiniteError if logits are NaN or infinite.
        """
        prompt = self.read([self.render(messages, tools, settings)])
        return self.answer(prompt, max_tokens, sampling, seed)[0].text

    def stream_chat(
        self,
        messages: Sequence[Message],
        max_tokens: int = 64,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> Stream:
        """Return an iterator over the text of `chat`, piece by piece as it is decoded."""
        prompt = self.read([self.render(messages, tools, settings)])
        return self.stream_answer(prompt, max_tokens, sampling, seed)

    def conversation(
        self, tools: Sequence[Any] = (), settings: Mapping[str, Any] | None = None
    ) -> Conversation:
        """Start a chat of several turns, each of which reads only its new tokens."""
        return Conversation(self, tools, settings)

    def complete(
        self, parts: Parts, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> str:
        """Continue text and latents without a chat template.

        Raises TextError for parts of another type; otherwise the errors of `chat`.
        """
        prompt = self.read([render_parts(parts, self.tokenizer)])
        return self.answer(prompt, max_tokens, sampling, seed)[0].text

    def stream_complete(
        self, parts: Parts, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Stream:
        """Return an iterator over the text of `complete`, piece by piece as it is decoded."""
        prompt = self.read([render_parts(parts, self.tokenizer)])
        return self.stream_answer(prompt, max_tokens, sampling, seed)

    def complete_records(self, records: Sequence[Sequence[Span]], max_tokens: int) -> list[str]:
        """Continue each record of a batch greedily, by up to `max_tokens` tokens."""
        answers = self.answer(self.read(records), max_tokens) if records else []
        return [answer.text for answer in answers]

    # --- prompts and their answers ---

    def prompt(self, parts: Parts) -> Prompt:
        """Build the prompt of one user turn made of text and latents."""
        return self.read([self.render(user_turn(parts))])

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> list[Span | Latents]:
        """Render a chat, up to the assistant's next turn, as a record of spans and latents.

        The arguments are those of `chat`.
        """
        return render_chat(messages, self.tokenizer, tools, settings)

    def read(self, records: Sequence[PromptRecord]) -> Prompt:
        """Build the prompt of a batch of records; their contexts are compressed.

        Raises TextError for an empty batch or record, and LatentsError for latents of another
        width than the decoder's.
        """
        return lay_out_prompt(self.compress_contexts(records), self.config, self.tokenizer)

    def answer(
        self, prompt: Prompt, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: Seed = 0
    ) -> list[Answer]:
        """Answer each row of a prompt, with up to `max_tokens` tokens.

        Raises TextError for a prompt that is too long, ConfigError for wrong `max_tokens` or
        `seed`, and NotFiniteError if logits are NaN or infinite.
        """
        answering = Answering(self, prompt, max_tokens, sampling, seed)
        while not answering.finished:
            answering.advance()
        return answering.finish()

    def stream_answer(
        self, prompt: Prompt, max_tokens: int = 64, sampling: Sampling = GREEDY, seed: int = 0
    ) -> Stream:
        """Return an iterator over the text of the answer to a prompt of one row; see `answer`."""
        return Stream(Answering(self, prompt, max_tokens, sampling, seed))


def user_turn(parts: Parts) -> list[Message]:
    """Return the messages of a chat with one turn of the user."""
    return [{"role": "user", "content": split_parts(parts)}]


def load(
    directory: str | Path, step: int | None = None, devices: Sequence[Any] | None = None
) -> LanguageModel:
    """Load a model from a training run or from the output of `convert.from_hf`.

    `step` is the step of a run to load, by default the newest. The model is loaded onto one
    device, or split over several: `lclm_jax.load("runs/tiny", devices=jax.devices())`. Compiled
    programs are cached on disk (`compilation.enable_cache`).

    A process that has loaded a model must not fork, as `multiprocessing` does by default on Linux
    before Python 3.14: JAX's threads do not survive in the child, which hangs. Use
    `multiprocessing.get_context("spawn")`.

    Raises FileNotFoundError if the directory has no checkpoint, and CheckpointError if it cannot be
    read or does not have the step.
    """
    directory = Path(expand_home(str(directory)))
    enable_cache()
    config, tokenizer = read_model_files(directory)
    mesh = make_mesh(serving_mesh(config, len(devices)), devices) if devices else one_device()
    abstract = abstract_params(config, mesh, config.dtype)  # no float32 copy on the way
    with jax.set_mesh(mesh):
        weights = serving_params(load_params(directory, abstract, step), config, donate=True)
    return LanguageModel(config, weights, tokenizer, mesh, str(directory.absolute()))


def serving_params(params: Params, config: ModelConfig, donate: bool = False) -> Params:
    """Convert parameters to the model's dtype and to the serving layout of the devices in scope.

    With `donate`, parameters whose layout changes are deleted.
    """
    params = jax.tree.map(
        lambda x: x if x.dtype == config.dtype else x.astype(config.dtype), params
    )
    layers = params["decoder"]["layers"]
    if prefers_unstacked(layers, platform()):
        split = split_layers(layers, config.decoder.layers, donate)
        params = {**params, "decoder": {**params["decoder"], "layers": split}}
    return params
