"""Chats within a budget: what becomes latents, and what a prompt takes."""

import os
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from lclm_jax.config import ConfigError
from lclm_jax.data.text.tokenizer import TextError
from lclm_jax.inference.chat import Chat, MessageSize, compress_oldest
from lclm_jax.inference.chat.archive import Archive
from lclm_jax.inference.chat.chat import PADDING
from lclm_jax.inference.compressor import Compressor
from lclm_jax.inference.generation import NotFiniteError
from lclm_jax.inference.language_model import LanguageModel
from lclm_jax.inference.latents import Latents
from lclm_jax.inference.prefixes import cache_bytes
from lclm_jax.inference.sampling import Sampling
from tests.support.prose import PROSE

BUDGET = 640
SHORT = 4  # tokens of an answer


def words(number, length=60):
    start = 61 * number % 9000
    return PROSE[start : start + length]


def chat_of(model, **settings):
    return Chat(model, **{"budget": BUDGET, "max_tokens": SHORT, **settings})


def answer_anew(model, chat):
    """The answer of a model that reads the prompt of a chat from its beginning."""
    *messages, _ = chat.history.messages()
    other = LanguageModel(model.config, model.params, model.tokenizer)
    other.prefixes.budget = 0
    return other.chat(messages, SHORT)


def test_a_short_chat_is_a_chat(model):
    chat, messages = (
        chat_of(model, system="Be brief."),
        [{"role": "system", "content": "Be brief."}],
    )
    for turn in range(3):
        messages.append({"role": "user", "content": words(turn)})
        answer = chat.say(words(turn))
        assert answer == model.chat(messages, SHORT)
        messages.append({"role": "assistant", "content": [answer]})
    assert chat.usage.plain == 7 and chat.usage.compressed == 0
    assert [m["content"] for m in chat.messages] == [m["content"] for m in messages]


def test_two_hundred_turns_stay_within_the_budget(model, monkeypatch):
    """Positions, the bytes of the cache, and how often each message is compressed."""
    compressed = []
    original = Compressor.compress_all

    def compress_all(self, contexts):
        compressed.extend(np.asarray(context.tokens).tobytes() for context in contexts)
        return original(self, contexts)

    monkeypatch.setattr(Compressor, "compress_all", compress_all)
    chat = chat_of(model, system="Be brief.")
    most = cache_bytes(model.weights, model.config, 1, BUDGET)
    read = []
    for turn in range(200):
        chat.say(f"{turn}: {words(turn, 40)}")
        assert chat.usage.positions + SHORT <= BUDGET - PADDING
        assert 0 < chat._prefixes.bytes <= most
        read.append(chat.last.positions_read)
    known = [entry for entry in chat.history.entries if entry.latents is not None]
    assert len(compressed) == len(known) > 390
    usage = chat.usage
    assert usage.forgotten and usage.compressed and usage.latents < usage.tokens / 3
    assert len(chat.messages) == 401
    assert chat.messages[1]["content"].startswith("0: ") and "latents" in str(usage)
    assert np.median(read) < usage.positions / 2
    assert chat.history.messages()[0]["content"] == "Be brief."


def test_an_answer_is_that_of_the_same_prompt_without_a_cache(model):
    chat = chat_of(model)
    for turn in range(12):
        answer = chat.say(words(turn, 100))
        # What is said later changes nothing before it, so the prompt can be made once more.
        if turn in (2, 5, 11):
            assert answer == answer_anew(model, chat)
    assert chat.usage.compressed


def test_results_of_tools_become_latents_first(model):
    chat = chat_of(model, budget=1024)
    chat.add({"role": "user", "content": "Look at the files."})
    for number in range(8):
        call = {"function": {"name": "read", "arguments": {"file": number}}}
        chat.add({"role": "assistant", "content": "", "tool_calls": [call]})
        chat.add({"role": "tool", "content": words(number, 120)})
    chat.reply()
    levels = {"tool": [], "assistant": [], "user": []}
    for entry in chat.history.entries:
        levels[entry.message["role"]].append(entry.level)
    assert levels["tool"] == ["latents"] * 6 + ["plain"] * 2
    assert levels["user"] == ["plain"] and levels["assistant"][-3:] == ["plain"] * 3
    steps = levels["assistant"].count("latents")
    assert steps > 0
    first, *others = chat.history.messages()
    assert [m["role"] for m in others] == ["assistant", "tool"] * (8 - steps) + ["assistant"]
    assert len(first["content"]) == 3 and first["content"][1] == "\n\nSteps so far:\n"


def test_an_agent_of_many_steps_stays_within_its_budget(model):
    """One turn of the user, and a hundred calls."""
    chat = chat_of(model, budget=1024)
    chat.add({"role": "user", "content": "Look at the files."})
    positions, read = [], []
    for number in range(100):
        call = {"function": {"name": "read", "arguments": {"file": number}}}
        chat.add({"role": "assistant", "content": "", "tool_calls": [call]})
        chat.add({"role": "tool", "content": words(number, 120)})
        if number % 5 == 0:
            chat.reply()
            positions.append(chat.usage.positions)
            read.append(chat.last.positions_read)
    assert max(positions) + SHORT <= 1024 - PADDING
    assert 0 < chat.usage.forgotten < 210 and chat.usage.compressed > 5
    assert chat.messages[0]["content"] == "Look at the files."
    assert min(read) < 700 / 3


def test_what_stays_plain_must_fit(model):
    chat = chat_of(model)
    chat.say("Who?")
    with pytest.raises(TextError, match="more than the budget of 640; raise the budget"):
        chat.say(PROSE[:3000])
    assert len(chat.messages) == 2
    assert isinstance(chat.say([model.compress(PROSE[:3000]), "Who?"][1:]), str)
    tagged = f"<|memory_start|>{PROSE[:700]}<|memory_end|>Who?"
    chat.say(tagged)
    assert isinstance(chat.messages[-2]["content"][0], Latents)


def test_budgets_have_a_least_size(model):
    with pytest.raises(ConfigError, match="budget of at least 516 positions .*, got 500"):
        chat_of(model, budget=500)


# --- policies ---


def test_another_policy_decides(model):
    asked = []

    def forget(sizes, wanted):
        asked.append(wanted)
        last = sizes[-1].turn
        return ["plain" if size.turn == last else "forgotten" for size in sizes]

    chat = chat_of(model, policy=forget)
    for turn in range(8):
        chat.say(words(turn, 200))
    assert asked and min(asked) > BUDGET // 4
    assert chat.usage.forgotten and not chat.usage.compressed


@pytest.mark.parametrize(
    "policy",
    [
        lambda *_: [],
        lambda *_: None,
        lambda sizes, *_: ["gone"] * len(sizes),
        lambda *_: ["latents"] * 99,
    ],
)
def test_levels_that_a_policy_must_not_give(model, policy):
    chat = chat_of(model, policy=policy)
    with pytest.raises(ConfigError, match="expected a policy to return"):
        for turn in range(9):
            chat.say(words(turn, 200))


def test_a_policy_does_not_bring_words_back(model):
    levels = iter(["latents", "plain"])
    chat = chat_of(model, policy=lambda sizes, *_: [next(levels), *["plain"] * (len(sizes) - 1)])
    with pytest.raises(ConfigError, match="keep what is compressed"):
        for turn in range(9):
            chat.say(words(turn, 200))


def size(role, turn, level="plain", plain=100):
    return MessageSize(role, turn, level, plain, plain // 10)


@pytest.mark.parametrize(
    ("sizes", "wanted", "levels"),
    [
        ([], 50, ""),
        ([size("system", 0), size("user", 0), size("user", 1), size("user", 2)], 50, "plpp"),
        ([size("user", 0), size("user", 1)], 50, "pp"),
        ([size("user", 0), size("tool", 0), size("tool", 0), size("tool", 0)], 50, "plpp"),
        ([size("user", 0, "latents"), size("user", 1), size("user", 2)], 5, "fpp"),
        ([size("user", 0, "latents"), *[size("user", n) for n in (1, 2, 3)]], 5, "llpp"),
        ([size("user", 0, "forgotten"), size("user", 1, "latents"), size("user", 2)], 5, "ffp"),
    ],
)
def test_the_default_policy(sizes, wanted, levels):
    assert "".join(level[0] for level in compress_oldest(sizes, wanted)) == levels


# --- thoughts ---


def test_long_thoughts_become_latents_while_they_are_written(model):
    chat = chat_of(model, max_tokens=60, sampling=Sampling(1.0))
    pieces = list(chat.stream("Who?", thought_tokens=16))
    content = chat.history.entries[-1].message["content"]
    assert sum(isinstance(part, Latents) for part in content) == 3
    text = "".join(pieces)
    assert "".join(chat.messages[-1]["content"]) == text
    assert chat.last.positions_read < chat.last.positions
    chat.say("And then?")
    assert chat.last.positions_read < 60


def test_thoughts_that_have_ended_are_no_longer_compressed(model, monkeypatch):
    """The model writes letters one by one; `</think>` ends its thoughts."""
    script = "<think>It is posix, or is it?</think>\n\nPosix."
    tokens = model.tokenizer.encode(script).tolist()
    monkeypatch.setattr(LanguageModel, "stops", (0,))
    chat = chat_of(model, max_tokens=60)
    position = [0]

    class Scripted:
        """A generation of the script, read on where the last one ended."""

        def __init__(self, *_):
            self.tokens = np.zeros((1, 0), int)
            self.logprobs = np.zeros((1, 0))

        finished = property(lambda self: position[0] >= len(tokens))
        cache = None

        def advance(self, count):
            self.tokens = np.append(self.tokens, [[tokens[position[0]]]], axis=1)
            self.logprobs = np.append(self.logprobs, [[0.0]], axis=1)
            position[0] += 1

    monkeypatch.setattr("lclm_jax.inference.answers.Generation", Scripted)
    monkeypatch.setattr("lclm_jax.inference.answers.Answering._keep_cache", lambda self: None)
    assert chat.say("Who?", thought_tokens=16) == script
    *thoughts, answer = chat.history.entries[-1].message["content"]
    assert answer == "Posix." and thoughts
    joined = "".join(latents.text for latents in thoughts)
    assert joined == "<think>It is posix, or is it?</think>"


# --- readers that leave, and errors ---


def test_a_reader_that_leaves_keeps_the_answer_so_far(model):
    chat = chat_of(model, max_tokens=40, sampling=Sampling(1.0))
    stream = chat.stream("Who?")
    first = next(stream)
    stream.close()
    assert "".join(chat.messages[-1]["content"]).startswith(first)
    assert len(chat.last.tokens) < 40 and chat.last.finish == "cancelled"
    chat.say("And?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_an_error_takes_the_turn_back(model_config, noisy, tokenizer):
    model = LanguageModel(model_config, noisy, tokenizer)
    chat = chat_of(model)
    chat.say("Who?")
    nan = Latents(np.zeros((1, 32), np.float32), 1)
    nan._source[:] = np.nan
    with pytest.raises(NotFiniteError):
        chat.say([nan, "Who?"])
    assert len(chat.messages) == 2
    with pytest.raises(TextError, match="expected text or latents in a chat, got int"):
        chat.say([3])
    assert len(chat.messages) == 2 and isinstance(chat.say("And?"), str)


def test_a_message_that_is_too_long_changes_nothing(model):
    chat = chat_of(model)
    for turn in range(12):
        chat.say(words(turn, 100))
    before = chat.usage
    assert before.compressed > 5
    with pytest.raises(TextError, match="4 for an answer and 256 for padding"):
        chat.say(PROSE[:4000])
    assert chat.usage == before


def test_one_answer_is_written_at_a_time(model):
    chat = chat_of(model, max_tokens=20)
    stream = chat.stream("Who?")
    next(stream)
    with pytest.raises(TextError, match="still being written"):
        chat.say("And?")
    stream.close()
    chat.say("And?")


def test_a_decoder_limits_the_budget(model_config, noisy, tokenizer):
    decoder = replace(model_config.decoder, max_positions=640)
    model = LanguageModel(replace(model_config, decoder=decoder), noisy, tokenizer)
    chat = chat_of(model, budget=4096)
    for turn in range(10):
        chat.say(words(turn, 100))
    assert chat.budget == 640 and chat.usage.compressed


@pytest.mark.parametrize("message", ["Who?", {"content": "Who?"}, {"role": 3, "content": "Who?"}])
def test_a_message_has_a_role(model, message):
    chat = chat_of(model)
    with pytest.raises(TextError, match="expected a message with role and content"):
        chat.add(message)
    assert chat.messages == []


def test_a_call_without_words_is_a_message(model):
    chat = chat_of(model)
    call = {"function": {"name": "read", "arguments": {}}}
    chat.add({"role": "assistant", "content": None, "tool_calls": [call]})
    assert chat.messages[0]["content"] is None


def test_thoughts_are_compressed_in_parts_worth_it(model):
    with pytest.raises(ConfigError, match="thought_tokens must be an integer, at least 16"):
        chat_of(model).say("Who?", thought_tokens=1)
    chat = chat_of(model, budget=1024, max_tokens=400, sampling=Sampling(1.0, min_tokens=400))
    chat.say(words(3, 200), thought_tokens=16)
    assert len(chat.last.tokens) <= 400


# --- the archive ---


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_an_archive_grows_at_its_end_only(counts):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, 2)).astype(np.float32) for count in counts]
    archive, before = Archive(4), []
    for part in parts:
        archive.append(Latents(part, len(part)))
        blocks = [piece.block for piece in archive.latents.slices(4, "float32")]
        full = len(before) - 1
        assert all(a is b for a, b in zip(before[: max(full, 0)], blocks, strict=False))
        before = blocks
    np.testing.assert_array_equal(archive.latents.vectors, np.concatenate(parts))
    assert len(archive) == sum(counts) == archive.latents.tokens


@pytest.mark.fuzz
@settings(deadline=None, max_examples=int(os.environ.get("LCLM_FUZZ", "20")))
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "tool", "memory"]), st.integers(1, 500)), max_size=8
    ),
    system=st.booleans(),
)
def test_no_prompt_exceeds_its_budget(model, turns, system):
    chat = chat_of(model, system="Be brief." if system else None)
    for number, (kind, length) in enumerate(turns):
        failed = False
        try:
            if kind == "tool" and number:
                chat.add({"role": "tool", "content": words(number, length)})
                chat.reply()
            elif kind == "memory":
                chat.say([model.compress(words(number, length)), "<|im_end|>"])
            else:
                chat.say(words(number, length))
        except TextError as error:
            assert "stay plain" in str(error)
            failed = True
        assert failed or chat.usage.positions + SHORT <= BUDGET - PADDING
