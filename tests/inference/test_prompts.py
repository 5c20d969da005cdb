"""Reading of prompts: in chunks, with latents in place, and conversations without rereading."""

import copy
from pickle import dumps, loads

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.batch import Places
from lclm_jax.data.records import Context, Plain
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.inference import compressor, prompts
from lclm_jax.inference import generation as generate
from lclm_jax.inference import sampling as sampling_rules
from lclm_jax.inference.compressor import Compressor
from lclm_jax.inference.generation import cache_size, prefill
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents, LatentsError
from lclm_jax.inference.prompts import Prompt, make_chunk, plan_chunks, with_blocks
from lclm_jax.inference.sampling import Rules, Sampling
from lclm_jax.model.lclm import LCLM

pytestmark = pytest.mark.image

TEXT = "Ada likes pears. Ben likes figs. "
STEPS = 5


@pytest.fixture(scope="module")
def forgetful(model_config, noisy, tokenizer):
    """The same model; it reads every prompt from its beginning."""
    model = LanguageModel(model_config, noisy, tokenizer)
    model.prefixes.budget = 0
    return model


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(prompts, "CHUNKS", (8, 32))


def random_prompt(model, lengths, latents=12, seed=0):
    """Prompts of random tokens, with the latents of every row in random places."""
    rng = np.random.default_rng(seed)
    rows, longest = len(lengths), max(lengths)
    tokens, slots = rng.integers(0, 256, (rows, longest)), np.full((rows, longest), -1)
    for row, length in enumerate(lengths):
        count = min(latents, length)
        where = np.sort(rng.choice(length, count, replace=False))
        slots[row, where] = np.arange(count)
    vectors = rng.normal(size=(rows, latents, model.config.decoder.width)).astype(np.float32)
    return tokens, slots, vectors, np.array(lengths)


def score(model, tokens, slots, latents, lengths):
    """The scores of each row's next token, from one pass over whole prompts."""
    columns = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    places = Places((columns < lengths[:, None]).astype(np.int32), columns.astype(np.int32))
    lclm, variables = LCLM(model.config), {"params": model.params}
    hidden, _ = lclm.apply(variables, tokens, slots, latents, places, method=LCLM.decode)
    last = np.take_along_axis(np.asarray(hidden), lengths[:, None, None] - 1, axis=1)
    return lclm.apply(variables, jnp.asarray(last), method=LCLM.logits)[:, 0]


@pytest.mark.parametrize("lengths", [[1], [8], [9], [32], [33], [100], [75, 6, 40]])
def test_chunks_give_what_one_pass_gives(model, short_chunks, lengths):
    arrays = random_prompt(model, lengths)
    logits, cache = prefill(model.weights, Prompt.of_arrays(*arrays), model.config, STEPS)
    np.testing.assert_allclose(logits, score(model, *arrays), atol=2e-5)
    assert int(cache.end) == max(lengths)


def test_only_the_last_chunk_has_pads(model, short_chunks):
    tokens = np.zeros((1, 77), np.int32)
    prompt = Prompt(tokens, np.full_like(tokens, -1), np.array([77]))
    spans = plan_chunks(prompt, model.config)
    assert [(span.first, span.stop, span.length) for span in spans] == [
        (0, 32, 32),
        (32, 64, 32),
        (64, 72, 8),
        (72, 77, 8),
    ]


def blocks_of(count, size=2, width=3):
    """Blocks of latents, each of its own number."""
    return [np.full((size, width), number, np.float32) for number in range(count)]


def test_slots_of_several_rows_are_numbered_through_their_blocks():
    slots = np.array([[-1, 0, 2], [1, -1, 0]])
    prompt = Prompt.of_arrays(np.zeros((2, 3)), slots, np.zeros((2, 3, 4)), [3, 2])
    assert prompt.slots.tolist() == [[-1, 0, 2], [4, -1, 3]]
    assert (prompt.tokens.dtype, prompt.slots.dtype) == (np.int32, np.int32)
    assert [block.shape for block in prompt.blocks] == [(3, 4), (3, 4)]
    assert Prompt.of_arrays(np.zeros((2, 3)), slots, np.zeros((2, 0, 4)), [3, 2]).blocks == []


def test_prompts_are_cut_where_a_chunk_or_its_blocks_end(model_config, short_chunks):
    """Long chunks while more than half of one is left; a block limit of 8 // 2 + 2 a row."""
    plain = Prompt(np.zeros((1, 60), np.int32), np.full((1, 60), -1), np.array([57]), blocks_of(1))
    planned = [
        (chunk.first, chunk.stop, chunk.length) for chunk in plan_chunks(plain, model_config)
    ]
    assert planned == [(0, 32, 32), (32, 57, 32)]
    short = Prompt(plain.tokens, plain.slots, np.array([48]), blocks_of(1))
    planned = [
        (chunk.first, chunk.stop, chunk.length) for chunk in plan_chunks(short, model_config)
    ]
    assert planned == [(0, 32, 32), (32, 40, 8), (40, 48, 8)]
    # Eight columns, each with a latent of another block, of which a chunk takes six.
    slots = np.arange(0, 16, 2)[None]
    spread = Prompt(np.zeros((1, 8), np.int32), slots, np.array([8]), blocks_of(8))
    chunks = plan_chunks(spread, model_config)
    assert [(chunk.first, chunk.stop, chunk.blocks.tolist()) for chunk in chunks] == [
        (0, 6, [0, 1, 2, 3, 4, 5]),
        (6, 8, [6, 7]),
    ]


def test_the_arrays_of_a_chunk(model_config, short_chunks):
    """Two rows, the second of which ends before; seven tokens are in the cache already."""
    slots = np.full((2, 11), -1)
    slots[0, 8:11], slots[1, 1], slots[1, 8] = [6, 7, 9], 2, 4
    tokens = np.arange(22, dtype=np.int32).reshape(2, 11)
    prompt = Prompt(tokens, slots, np.array([11, 9]), blocks_of(5))
    first, second = plan_chunks(prompt, model_config)
    chunk = make_chunk(prompt, second, model_config, start=7)
    assert second.blocks.tolist() == [2, 3, 4]
    assert chunk.tokens.tolist() == [[8, 9, 10] + [0] * 5, [19, 20, 21] + [0] * 5]
    assert chunk.slots.tolist() == [[2, 3, 5] + [-1] * 5, [0, -1, -1] + [-1] * 5]
    assert chunk.places.segments.tolist() == [[1] * 3 + [0] * 5, [1] + [0] * 7]
    assert chunk.places.positions.tolist() == [[15, 16, 17] + [0] * 5, [15] + [0] * 7]
    assert chunk.last.tolist() == [2, 0] and int(chunk.count) == 3
    # Twelve blocks at most, 8 // 2 + 2 a row: the three that are used, and the first to fill up.
    assert [int(block[0, 0]) for block in chunk.blocks] == [2, 3, 4] + [0] * 9
    arrays = (chunk.tokens, chunk.slots, chunk.last, chunk.places.segments, chunk.places.positions)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    before = make_chunk(prompt, first, model_config)
    assert before.last.tolist() == [-1, -1] and int(before.count) == 8
    assert before.slots[1].tolist() == [-1, 0] + [-1] * 6
    assert before.places.positions.tolist() == [list(range(8))] * 2


def test_prompts_without_latents_have_a_block_of_zeros(model_config):
    plain = Prompt(np.zeros((1, 3), np.int32), np.full((1, 3), -1), np.array([3]))
    (block,) = with_blocks(plain, model_config).blocks
    assert block.shape == (4, 32) and not np.any(block)  # 16 tokens of a window by 4
    (planned,) = plan_chunks(plain, model_config)
    assert (planned.length, planned.stop, planned.blocks.tolist()) == (256, 3, [])


def test_a_chunk_of_many_contexts_ends_where_its_blocks_do(model, short_chunks):
    """Each context has a window and a block of its own: more of them than a chunk is given."""
    latents = [model.compress_tokens(np.arange(n, n + 3)) for n in range(40)]
    prompt = model.read([[*latents, Plain(np.array([5, 6, 7]))]])
    assert len(prompt.blocks) == 40
    limits = [prompts.block_limit(1, span.length, 4) for span in plan_chunks(prompt, model.config)]
    spans = plan_chunks(prompt, model.config)
    assert all(len(span.blocks) <= limit for span, limit in zip(spans, limits, strict=True))
    logits, _ = prefill(model.weights, prompt, model.config, STEPS)
    vectors = np.concatenate([part.vectors for part in latents])[None]
    slots = np.where(prompt.slots >= 0, np.cumsum(prompt.slots >= 0) - 1, -1)
    expected = score(model, prompt.tokens, slots, vectors, prompt.lengths)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_cache_that_is_given_is_read_on(model, short_chunks):
    tokens, slots, vectors, _ = random_prompt(model, [50])
    first, rest = (slice(0, 21), slice(21, 50))
    prefix = Prompt.of_arrays(tokens[:, first], slots[:, first], vectors, np.array([21]))
    _, cache = prefill(model.weights, prefix, model.config, 64)
    more = Prompt.of_arrays(tokens[:, rest], slots[:, rest], vectors, np.array([29]))
    logits, cache = prefill(model.weights, more, model.config, STEPS, cache, 21)
    expected = score(model, tokens, slots, vectors, np.array([50]))
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"expected room for \d+ positions.*start a new one"):
        prefill(model.weights, more, model.config, cache.length, cache, 50)


@pytest.mark.parametrize(
    ("length", "size"), [(1, 6400), (6400, 6400), (6401, 18688), (65536 + 2 + 2048, 67840)]
)
def test_caches_have_few_sizes(length, size):
    assert cache_size(1, length) == size
    assert length <= cache_size(8, length) <= max(1.125 * length, 128)


def count_read(monkeypatch) -> list[int]:
    """Collects how many positions each chunk has."""
    counts: list[int] = []
    original = generate.read_chunk

    def read(params, chunk, *inputs, **settings):
        counts.append(int(chunk.count))
        return original(params, chunk, *inputs, **settings)

    monkeypatch.setattr(generate, "read_chunk", read)
    return counts


def test_a_conversation_answers_as_chat_and_reads_only_what_is_new(model, forgetful, monkeypatch):
    counts = count_read(monkeypatch)
    memory = model.compress(TEXT * 20)
    turns = [[memory, "Who likes figs?"], "And plums? " * 4, [model.compress(TEXT), "Who?"]]
    conversation, messages = model.conversation(), []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        counts.clear()
        answer = conversation.ask(turn, max_tokens=STEPS)
        read = sum(counts)
        counts.clear()
        assert answer == forgetful.chat(messages, max_tokens=STEPS)
        messages.append({"role": "assistant", "content": [answer]})
        whole = sum(counts)
        assert read == whole if len(messages) == 2 else read < whole / 2
        assert conversation.last.positions_read == read
        assert conversation.last.positions == whole


def test_a_conversation_forgets_what_other_parameters_read(model_config, noisy, tokenizer):
    changed = jax.tree.map(lambda x: 1.1 * x, noisy)
    model = LanguageModel(model_config, noisy, tokenizer)
    conversation = model.conversation()
    first = conversation.ask("Who likes figs?", max_tokens=STEPS)
    model.params = changed
    answer = conversation.ask("And plums?", max_tokens=STEPS)
    messages = [
        {"role": "user", "content": ["Who likes figs?"]},
        {"role": "assistant", "content": [first]},
        {"role": "user", "content": ["And plums?"]},
    ]
    other = LanguageModel(model_config, changed, tokenizer)
    assert answer == other.chat(messages, max_tokens=STEPS)


def test_a_conversation_whose_turns_need_many_blocks_has_a_longer_cache(
    model, forgetful, monkeypatch
):
    """A chunk that ends early makes the plan longer than the prompt's length says."""
    monkeypatch.setattr(prompts, "CHUNKS", (256, 512))
    monkeypatch.setattr(generate, "cache_size", lambda rows, length: -(-length // 128) * 128)
    conversation, messages = model.conversation(), []
    for count in (1, 150, 40):
        turn = [*(model.compress_tokens(np.arange(n, n + 2)) for n in range(count)), "Who?"]
        messages.append({"role": "user", "content": turn})
        answer = conversation.ask(turn, max_tokens=2)
        assert answer == forgetful.chat(messages, max_tokens=2)
        assert count == 1 or conversation.last.positions_read < conversation.last.positions
        messages.append({"role": "assistant", "content": [answer]})


def test_decoding_past_the_end_of_a_cache_is_an_error(model):
    tokens = np.zeros((1, 5), np.int32)
    prompt = Prompt(tokens, np.full_like(tokens, -1), np.array([5]))
    logits, cache = prefill(model.weights, prompt, model.config)
    steps = cache.length
    with pytest.raises(ValueError, match=rf"room for {steps - 1} tokens.*it has {steps - 5}"):
        generate.continue_tokens(model.weights, logits, prompt.lengths, cache, model.config, steps)


def test_a_context_in_a_conversation_is_compressed_once(model, monkeypatch):
    passes = []
    original = Compressor._encode_pass
    monkeypatch.setattr(
        Compressor, "_encode_pass", lambda *inputs: passes.append(1) or original(*inputs)
    )
    conversation = model.conversation()
    conversation.ask(f"<|memory_start|>{TEXT}<|memory_end|>Who?", max_tokens=2)
    before = len(passes)
    conversation.ask("Who else?", max_tokens=2)
    assert before and len(passes) == before


def test_short_contexts_share_windows(model, monkeypatch):
    """Each gets the latents it gets alone, from fewer windows than there are contexts."""
    rng = np.random.default_rng(0)
    contexts = [Context(rng.integers(0, 256, n).astype(np.int32)) for n in (3, 5, 16, 4, 37, 1, 0)]
    alone = [model.compress_tokens(context.tokens).vectors for context in contexts]
    counts = []
    original = compressor.empty_windows
    monkeypatch.setattr(
        compressor, "empty_windows", lambda *shape: counts.append(shape[1]) or original(*shape)
    )
    for latents, expected in zip(model.compress_all(contexts), alone, strict=True):
        np.testing.assert_allclose(latents.vectors, expected, atol=1e-5)
    assert sum(counts) < len(contexts)


def test_latents_of_an_array_are_read_as_those_of_the_device(model):
    memory = model.compress(TEXT * 3)
    copied = Latents(memory.vectors, memory.tokens)
    assert len(copied) == len(memory) and copied.width == memory.width
    answer = model.generate([memory, "Who?"], max_tokens=STEPS)
    assert model.generate([copied, "Who?"], max_tokens=STEPS) == answer


@pytest.mark.parametrize("again", [copy.deepcopy, lambda latents: loads(dumps(latents))])
def test_a_copy_or_pickle_of_latents_reads_as_they_do(model, again):
    latents = model.compress(TEXT * 3)
    tokens = model.compress_tokens(np.arange(20))
    for original in (latents, latents[1:3], tokens, Latents(tokens.vectors, tokens.tokens)):
        copied = again(again(original))
        np.testing.assert_array_equal(copied.vectors, original.vectors)
        assert (copied.text, copied.tokens) == (original.text, original.tokens)
    np.testing.assert_array_equal(again(latents)[1:3].offsets, latents[1:3].offsets)
    answer = model.generate([latents, "Who?"], max_tokens=STEPS)
    assert model.generate([again(latents), "Who?"], max_tokens=STEPS) == answer
    with pytest.raises(LatentsError, match="expected latents of a text"):
        again(tokens).chunks(4)


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, top_k=40), Sampling(1.3, top_p=0.7), Sampling(0.5, top_k=300)]
)
def test_few_candidates_cut_as_the_whole_vocabulary_does(monkeypatch, sampling):
    logits = jax.random.normal(jax.random.key(0), (3, 500)) * 4
    rules = Rules.of(sampling)
    whole = sampling_rules._lowest(logits, rules)
    monkeypatch.setattr(sampling_rules, "CANDIDATES", 64)
    np.testing.assert_allclose(sampling_rules._lowest(logits, rules), whole, rtol=1e-6)


@pytest.mark.parametrize(("stops", "places"), [(0, 16), (1, 16), (16, 16), (17, 32), (40, 48)])
def test_any_number_of_stop_tokens_has_a_place(stops, places):
    rules = Rules.of(Sampling(), range(stops))
    assert rules.stops.tolist() == [*range(stops), *[-1] * (places - stops)]


def test_latents_alone_are_a_turn(model):
    memory = model.compress(TEXT)
    assert model.generate(memory, STEPS) == model.generate([memory], STEPS)
    assert model.conversation().ask(memory, STEPS) == model.generate([memory], STEPS)
    assert model.generate("Who?", STEPS) == model.generate(["Who?"], STEPS)


def test_no_prompts_have_no_answers(model):
    assert model.complete_records([], 5) == []
    with pytest.raises(TextError, match="at least one prompt"):
        model.read([])


@pytest.mark.parametrize("vectors", [[], np.zeros(3), np.zeros((1, 2, 3))])
def test_latents_are_vectors(vectors):
    with pytest.raises(ValueError, match=r"expected vectors \[M, D\]"):
        Latents(vectors, 0)


def test_no_tokens_are_no_answer(model):
    assert model.complete(TEXT, max_tokens=0) == ""
