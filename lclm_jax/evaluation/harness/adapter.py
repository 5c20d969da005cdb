"""A language model as the harness knows it, in one view of the prompts' passages."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lclm_jax.config import ConfigError
from lclm_jax.data.records import Context, Plain
from lclm_jax.errors import TextError
from lclm_jax.evaluation.answering import Answerer
from lclm_jax.evaluation.answers_file import ANSWERS, AnswersFile
from lclm_jax.evaluation.harness.contexts import RULES, ContextRule, find_rule
from lclm_jax.evaluation.identity import check_model
from lclm_jax.evaluation.likelihoods import Continuation, LikelihoodScorer
from lclm_jax.evaluation.questions import Question
from lclm_jax.evaluation.rendering import render_continuation, train_last
from lclm_jax.evaluation.views import View, make_views
from lclm_jax.inference.language_model import LanguageModel, load
from lclm_jax.inference.sampling import Sampling
from lclm_jax.progress import Progress, track

MAX_TOKENS = 256  # of an answer where a task does not say, as for the harness' own models
Row = tuple[str, int]  # the name of a task, and the number of a row


class ChatText(str):
    """A chat in JSON, where the harness expects its text in a chat template."""


class HarnessModel(TemplateLM):
    """Answers the harness' requests with a model in one view.

    `positions` and `wordings` have the length of each row's prompt, and its text without passages,
    by the name of the task and the number of the row.
    """

    def __init__(
        self,
        model: LanguageModel,
        view: View,
        answers: AnswersFile,
        rules: Mapping[str, ContextRule] = RULES,
        batch: int = 16,
        progress: Progress = track,
    ):
        super().__init__()
        self.model, self.view, self.rules = model, view, rules
        self.answerer = Answerer(model, answers, batch, progress)
        self.scorer = LikelihoodScorer(model, answers, progress)
        self.positions: dict[Row, int] = {}
        self.wordings: dict[Row, str] = {}

    # --- what the harness asks of a tokenizer ---

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer and its chat template, for the harness' caches."""
        return self.model.tokenizer.fingerprint

    @property
    def eot_token_id(self) -> int:
        """Id at which texts end."""
        return self.model.tokenizer.stops[0]

    @property
    def prefix_token_id(self) -> int:
        """Id before a text that has nothing before it: the first of a text, or the last."""
        tokenizer = self.model.tokenizer
        return tokenizer.control.get(tokenizer.special.get("bos_token", ""), self.eot_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the tokens of a text, after those with which a text begins, as `<s>` of Llama.

        Control tokens that the text spells are ordinary characters.
        """
        tokenizer = self.model.tokenizer
        start = [] if add_special_tokens is False else tokenizer.text_start.tolist()
        return start + tokenizer.encode(string).tolist()

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template, for the harness' records."""
        return self.model.tokenizer.template or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a chat as text, for `generate_until` and `loglikelihood` to read."""
        return ChatText(json.dumps(chat_history))

    # --- requests ---

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each request."""
        if repeats := [request for request in requests if (request.repeats or 1) > 1]:
            first = repeats[0]
            raise TextError(
                f"{first.task_name} answers each question {first.repeats} times, a view only once; "
                "leave it out"
            )
        questions = [self.read_question(request) for request in requests]
        replies = self.answerer.answer(questions, self.view)
        for request, question, reply in zip(requests, questions, replies, strict=True):
            self._note(request, question, reply.positions)
        return [reply.text for reply in replies]

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the likeliest."""
        if self.view.name == "expand":
            raise ConfigError("the view expand answers tasks of type generate_until only")
        questions = [self.read_question(request) for request in requests]
        continuations = [
            self._continue(question, request.arguments[1])
            for question, request in zip(questions, requests, strict=True)
        ]
        likelihoods = self.scorer.score(continuations, self.view.label)
        for request, question, result in zip(requests, questions, likelihoods, strict=True):
            self._note(request, question, result.positions)
        return [(result.value, result.is_greedy) for result in likelihoods]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text, read in windows of the decoder's positions."""
        likelihoods = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            results = self._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
            likelihoods.append(sum(value for value, _ in results))
            self._note(request, Question("", 0, ()), 0)
        return likelihoods

    @property
    def max_length(self) -> int:
        """Positions of a text that are read at once."""
        return self.model.config.decoder.max_positions

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        continuations = [
            Continuation(
                json.dumps([context, tokens]),
                train_last([Plain(np.array(context + tokens, np.int32))], len(tokens)),
            )
            for _, context, tokens in requests
        ]
        results = self.scorer.score(continuations, "text")
        return [(result.value, result.is_greedy) for result in results]

    def read_question(self, request: Instance) -> Question:
        """Return the question of a request, with the passage that its task's rule finds.

        In a chat, the passage is part of the user's last message.
        """
        context, task = request.args[0], request.task_name or ""
        is_chat = isinstance(context, ChatText)
        messages = json.loads(context) if is_chat else [{"role": "user", "content": context}]
        last = max(n for n, message in enumerate(messages) if message["role"] == "user")
        rule, parts = find_rule(task, self.rules), []
        for number, message in enumerate(messages):
            text = message["content"]
            content = rule.split(text, request.doc) if number == last else [text]
            parts.append({**message, "content": content})
        settings: dict[str, Any] = {}
        if request.request_type == "generate_until":
            settings = read_settings(request.arguments[1])
        return Question(task, request.doc_id or 0, parts, is_chat, **settings)

    def _continue(self, question: Question, continuation: str) -> Continuation:
        """Return a prompt with a continuation, tokenized as the harness' own models do."""

        def as_context(text: str) -> Context:
            return Context(self.model.tokenizer.encode(text), self.view.ratio)

        record = render_continuation(question, continuation, self.view, self.model, as_context)
        if isinstance(record[0], Plain) and record[0].trained:  # there is nothing before it
            record = [Plain(np.array([self.prefix_token_id], np.int32)), *record]
        view = self.view.label if question.passages else "text"
        return Continuation(json.dumps([question.identity, continuation, view]), record)

    def _note(self, request: Instance, question: Question, positions: int):
        """Note the length of a prompt, for choices that of the longest, and its wording."""
        row = (request.task_name or "", request.doc_id or 0)
        self.wordings[row] = question.wording
        self.positions[row] = max(positions, self.positions.get(row, 0))


def read_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bound and the sampling of an answer from the harness' generation settings."""
    settings: dict[str, Any] = {**normalize_gen_kwargs(dict(values), MAX_TOKENS)}
    sampling: dict[str, Any] = {"stop": tuple(text for text in settings["until"] if text)}
    if settings.get("do_sample"):
        names = ("temperature", "top_p", "top_k")
        sampling |= {name: settings[name] for name in names if settings.get(name)}
    return {"max_tokens": settings["max_gen_toks"], "sampling": Sampling(**sampling)}


@register_model("lclm")
class RegisteredModel(HarnessModel):
    """The model for the harness' own command: `--model lclm --model_args checkpoint=DIR,...`.

    Arguments: `checkpoint`, `view` (latents, text, nothing, first, random or expand), `ratio`,
    and `out`, a directory with the answers of this model, from which a second start resumes.
    """

    def __init__(
        self,
        checkpoint: str,
        view: str = "latents",
        ratio: int | None = None,
        out: str | None = None,
        batch_size: int | str = 16,
        **_: Any,
    ):
        model = load(checkpoint)
        ratio = ratio or model.config.compression.ratio
        (chosen,) = make_views([view], [int(ratio)], model)
        batch = int(batch_size) if str(batch_size).isdigit() else 16
        if out:
            check_model(Path(out), model)
        super().__init__(
            model, chosen, AnswersFile(Path(out) / ANSWERS if out else None), batch=batch
        )
