"""Answers: batches, streams, stop strings, log-probabilities, kept caches and threads."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from lclm_jax.batch import Places
from lclm_jax.config import ConfigError
from lclm_jax.data.records import Plain
from lclm_jax.distributed.sharding import make_mesh, serving_mesh
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.sampling import Sampling
from lclm_jax.model.lclm import LCLM

pytestmark = pytest.mark.image

TEXT = "Ada likes pears. Ben likes figs. "
STEPS = 12
WARM = Sampling(temperature=1.0, top_p=0.95)


@pytest.fixture(scope="module")
def model(model_config, noisy, tokenizer):
    """A model that reads every prompt from its beginning."""
    model = LanguageModel(model_config, noisy, tokenizer)
    model.prefixes.budget = 0
    return model


@pytest.fixture
def remembering(model_config, noisy, tokenizer):
    """The same model with room for several caches."""
    return LanguageModel(model_config, noisy, tokenizer)


def prompts_of(model):
    latents = model.compress(TEXT * 3)
    return [[latents, "Who likes figs?"], "Who?", ["About ", latents, " and ", latents, " tell."]]


# --- batches ---


@pytest.mark.parametrize("sampling", [Sampling(), WARM, Sampling(0.7, 5, 1.0, 1.3)])
def test_an_answer_does_not_depend_on_those_beside_it(model, sampling):
    prompts, seeds = prompts_of(model), [3, 1, 2]
    together = model.generate_batch(prompts, STEPS, sampling, seeds)
    for prompt, seed, answer in zip(prompts, seeds, together, strict=True):
        assert answer.text == model.generate(prompt, STEPS, sampling, seed)
    assert [answer.positions for answer in together] == [
        int(model.prompt(prompt).lengths[0]) for prompt in prompts
    ]


def test_a_batch_of_none_and_seeds_that_do_not_fit(model):
    assert model.generate_batch([]) == []
    with pytest.raises(ConfigError, match="a seed or one for each of 2 prompts, got 3"):
        model.generate_batch(["a", "b"], 1, seed=[1, 2, 3])


def test_log_probabilities_are_the_models_own(model):
    """Temperature, penalties and cuts do not change them."""
    sampling = Sampling(0.5, 20, 0.9, 1.5)
    (answer,) = model.generate_batch(["Who likes figs?"], STEPS, sampling, seed=4)
    prompt = model.prompt("Who likes figs?")
    tokens = np.concatenate([prompt.tokens, [answer.tokens]], axis=1)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    lclm, latents = LCLM(model.config), np.zeros((1, 1, model.config.decoder.width), np.float32)
    inputs = (tokens, np.full_like(tokens, -1), latents, Places(np.ones_like(positions), positions))
    variables = {"params": model.params}
    hidden, _ = lclm.apply(variables, *inputs, method=LCLM.decode)
    logits = lclm.apply(variables, hidden, method=LCLM.logits)[0]
    expected = jax.nn.log_softmax(logits, axis=-1)[prompt.lengths[0] - 1 : -1]
    expected = np.take_along_axis(np.asarray(expected), np.array(answer.tokens)[:, None], axis=1)
    np.testing.assert_allclose(answer.logprobs, expected[:, 0], atol=1e-4)


# --- streams ---


@pytest.mark.parametrize("sampling", [Sampling(), WARM, Sampling(1.0, stop=("e", "th"))])
def test_a_stream_is_the_answer_in_pieces(model, sampling):
    latents = model.compress(TEXT)
    messages = [{"role": "user", "content": [latents, "Who?"]}]
    for whole, stream in (
        (
            model.generate([latents, "Who?"], STEPS, sampling, 7),
            model.stream([latents, "Who?"], STEPS, sampling, 7),
        ),
        (model.chat(messages, STEPS, sampling, 7), model.stream_chat(messages, STEPS, sampling, 7)),
        (model.complete(TEXT, STEPS, sampling, 7), model.stream_complete(TEXT, STEPS, sampling, 7)),
    ):
        pieces = list(stream)
        assert "".join(pieces) == whole == stream.answer.text
        assert all(pieces) and next(stream, None) is None


def test_a_stream_that_is_cancelled_keeps_its_answer_so_far(model):
    whole = model.complete(TEXT, 100, WARM, 5)
    stream = model.stream_complete(TEXT, 100, WARM, 5)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 3:
            stream.cancel()
    assert stream.answer.finish == "cancelled" and len(stream.answer.tokens) < 100
    assert whole.startswith("".join(pieces)) and "".join(pieces) == stream.answer.text


def test_two_streams_of_one_thread_do_not_wait_for_each_other(model):
    expected = [model.complete(text, STEPS, WARM, 1) for text in (TEXT, "Who?")]
    streams = [model.stream_complete(text, STEPS, WARM, 1) for text in (TEXT, "Who?")]
    texts = ["", ""]
    while any(stream.answer is None for stream in streams):
        for row, stream in enumerate(streams):
            texts[row] += next(stream, "")
    assert texts == expected


# --- the end of an answer ---


def test_an_answer_ends_before_its_first_stop_string(model):
    whole = model.complete(TEXT, 60, WARM, 2)
    assert len(whole) > 20
    late, early = whole[12:15], whole[8:10]
    (answer,) = model.answer(
        model.read([[Plain(model.tokenizer.encode(TEXT))]]),
        60,
        Sampling(1.0, top_p=0.95, stop=(late, early)),
        2,
    )
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in (late, early)]
    assert answer.text == whole[: min(ends)[1]] and answer.finish == "stop"
    assert len(answer.tokens) < 60 and len(answer.tokens) == len(answer.logprobs)


def test_rows_stop_each_at_its_own_string(model):
    prompts = prompts_of(model)
    whole = [model.generate(prompt, 40, WARM, 1) for prompt in prompts]
    stop = whole[0][5:7]
    sampling = Sampling(1.0, top_p=0.95, stop=(stop,))
    answers = model.generate_batch(prompts, 40, sampling, 1)
    for answer, text in zip(answers, whole, strict=True):
        assert answer.text == text.partition(stop)[0]
        assert answer.finish == ("stop" if stop in text else "length")


def test_a_stop_string_has_letters():
    with pytest.raises(ConfigError, match=r"Sampling.stop.0 must be text, not empty"):
        Sampling(stop=("",))


# --- caches that are kept ---


def test_questions_about_one_document_read_it_once(model, remembering):
    latents = remembering.compress(TEXT * 20)
    positions = []
    for question in ("Who likes figs?", "Who likes pears?", "Who?"):
        (answer,) = remembering.generate_batch([[latents, question]], STEPS)
        positions.append((answer.positions, answer.positions_read))
        assert answer.text == model.generate([latents, question], STEPS)
    assert positions[0][0] == positions[0][1] > 140
    assert all(read < 40 for _, read in positions[1:])


def test_two_conversations_about_one_document_keep_both_their_turns(remembering):
    latents = remembering.compress(TEXT * 20)
    first, second = remembering.conversation(), remembering.conversation()
    first.ask([latents, "Who likes figs?"], STEPS)
    second.ask([latents, "Who likes pears?"], STEPS)
    first.ask("And plums?", STEPS)
    second.ask("And plums?", STEPS)
    for answer in (first.last, second.last):
        assert answer.positions_read < 80 < answer.positions / 2


def test_a_prompt_that_is_asked_again_has_one_cache(remembering):
    remembering.complete(TEXT, STEPS)
    size = remembering.prefixes.bytes
    for _ in range(3):
        remembering.complete(TEXT, STEPS)
        assert remembering.prefixes.bytes == size


@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_of_none_keeps_none_and_any_other_at_least_the_newest(remembering, budget):
    remembering.prefixes.budget = budget
    for text in (TEXT, "Who?", "Whom?"):
        remembering.complete(text, STEPS)
        assert (remembering.prefixes.bytes > 0) == bool(budget)
    remembering.params = remembering.params
    assert remembering.prefixes.bytes == 0


def test_caches_beyond_the_budget_are_dropped(remembering):
    remembering.complete("Who?", STEPS)
    size = remembering.prefixes.bytes
    remembering.prefixes.budget = 2 * size
    for text in ("Ada", "Ben", "Cy"):
        remembering.complete(text, STEPS)
        assert remembering.prefixes.bytes <= 2 * size
    answer = remembering.answer(remembering.read([[Plain(remembering.tokenizer.encode("Ben"))]]), 1)
    assert answer[0].positions_read == 1


# --- threads ---


def test_threads_get_the_answers_they_would_get_alone(model, remembering):
    latents = remembering.compress(TEXT * 9)
    questions = [f"Who likes {fruit}?" for fruit in ("figs", "pears", "plums", "limes")] * 3
    expected = [model.generate([latents, question], STEPS, WARM, 3) for question in questions]

    def ask(question):
        stream = remembering.stream([latents, question], STEPS, WARM, 3)
        remembering.compress(question)
        return "".join(stream)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, questions)) == expected


def test_threads_may_share_a_stream(model):
    expected = model.complete(TEXT, 40, WARM, 3)
    stream = model.stream_complete(TEXT, 40, WARM, 3)
    with ThreadPoolExecutor(3) as pool:
        pieces = list(pool.map(lambda _: list(stream), range(3)))
    assert sorted("".join(map("".join, pieces))) == sorted(expected)


def test_threads_do_not_stop_a_model_on_several_devices(model_config, noisy, tokenizer):
    mesh = make_mesh(serving_mesh(model_config, 4), jax.devices()[:4])
    spread = LanguageModel(model_config, noisy, tokenizer, mesh)
    expected = [spread.complete(text, STEPS) for text in (TEXT, "Who?", "And?")]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert (
                list(pool.map(lambda t: spread.complete(t, STEPS), (TEXT, "Who?", "And?")))
                == expected
            )
