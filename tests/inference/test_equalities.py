"""Streams, batches, kept caches and stores change nothing: any prompt gives the same tokens.

Each example is answered by a model that keeps caches of all prompts before it, and by one that
reads every prompt from its beginning.
"""

import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.store import Store, StoreError
from tests.support.prose import PROSE

TEXTS = [PROSE[start : start + length] for start, length in ((0, 90), (200, 400), (900, 40))]
QUESTIONS = ["Who?", "", "<|im_end|>", "Who?\n", "é🙂"]
SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    min_tokens=st.integers(0, 3),
    min_p=st.sampled_from([0.0, 0.2]),
    stop=st.sampled_from([(), ("e",), ("th", "a b")]),
)
# A part is a text, or latents of a text from a given latent on.
PARTS = st.sampled_from(QUESTIONS) | st.tuples(st.sampled_from(TEXTS), st.integers(0, 4))
MAX_TOKENS = 6
EXAMPLES = int(os.environ.get("LCLM_FUZZ", "15"))


@pytest.fixture(scope="module")
def models(model_config, noisy, tokenizer):
    """A model that keeps caches, and the same without."""
    models = [LanguageModel(model_config, noisy, tokenizer) for _ in range(2)]
    models[1].prefixes.budget = 0
    return models


@pytest.fixture(scope="module")
def memories(models, tmp_path_factory):
    """Latents of each text: compressed at once, and from a store."""
    store = Store(tmp_path_factory.mktemp("stores") / "store", models[0])
    return {
        text: (models[0].compress(text), store.add_text(f"text {number}", text))
        for number, text in enumerate(TEXTS)
    }


@pytest.mark.fuzz
@settings(deadline=None, max_examples=EXAMPLES)
@given(
    prompts=st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=3),
    sampling=SETTINGS,
    seed=st.integers(0, 3),
)
def test_any_prompt_is_answered_the_same_on_every_way(models, memories, prompts, sampling, seed):
    keeping, forgetful = models

    def build(prompt, kind):
        return [
            part if isinstance(part, str) else memories[part[0]][kind][part[1] :] for part in prompt
        ]

    expected = [
        forgetful.generate(build(prompt, 0), MAX_TOKENS, sampling, seed) for prompt in prompts
    ]
    for kind in (0, 1):
        built = [build(prompt, kind) for prompt in prompts]
        kept = [keeping.generate(parts, MAX_TOKENS, sampling, seed) for parts in built]
        streamed = ["".join(keeping.stream(parts, MAX_TOKENS, sampling, seed)) for parts in built]
        together = keeping.generate_batch(built, MAX_TOKENS, sampling, seed)
        assert kept == streamed == [answer.text for answer in together] == expected


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dictionary of the texts that it should have."""

    model: LanguageModel
    directories: object
    names = st.sampled_from(["a", "b/c", "日本"])
    texts = st.sampled_from([*TEXTS, "x", TEXTS[0] + TEXTS[1]])

    @initialize()
    def open(self):
        self.directory = self.directories.mktemp("machine") / "store"
        self.store = Store(self.directory, self.model)
        self.expected = {}

    @rule(name=names, text=texts)
    def add(self, name, text):
        self.store.add_text(name, text)
        self.expected[name] = text

    @rule(name=names, text=texts)
    def append(self, name, text):
        if name not in self.expected:
            with pytest.raises(StoreError, match="got ratios: none"):
                self.store.append(name, text)
            return
        self.store.append(name, text)
        self.expected[name] += text

    @rule(name=names)
    def remove(self, name):
        if name in self.expected:
            assert self.store.remove(name) == 1
            del self.expected[name]

    @rule()
    def clean_up(self):
        needed = self.store.gc().needed
        assert self.store.gc().removed == 0 and (needed > 0) == bool(self.expected)

    @rule()
    def reopen(self):
        self.store = Store(self.directory, self.model)

    @invariant()
    def has_what_was_added(self):
        if not hasattr(self, "store"):
            return
        assert [entry.name for entry in self.store.ls()] == sorted(self.expected)
        for name, text in self.expected.items():
            latents = self.store[name]
            assert latents.text == text and len(latents.offsets) == len(latents)
            expected = self.model.compress(text).vectors
            np.testing.assert_allclose(latents.vectors, expected, atol=1e-5)


@pytest.mark.fuzz
def test_any_history_of_a_store_keeps_what_was_added(models, tmp_path_factory):
    StoreMachine.model, StoreMachine.directories = models[0], tmp_path_factory
    machine = StoreMachine.TestCase
    machine.settings = settings(
        deadline=None, max_examples=max(EXAMPLES // 2, 1), stateful_step_count=8
    )
    machine().runTest()
