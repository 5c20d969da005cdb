"""Histories of an agent's work, generated from a seed, with questions that have exact answers.

A history is turns of a user, an assistant and its tools: a few facts amid filler, as long as asked
for in tokens. Four kinds of questions need different things of a memory:

- retention: a fact that is stated once, in the first fifth of the history;
- update: the current value of a fact that changes once or twice;
- contradiction: both values of a fact of which two sources say different things;
- order: the job that finished right after another one.

Facts about other projects, in the same words, stand around the one that is asked for. Values are
words that occur nowhere in the filler, so an answer is right if it contains the value. Everything
depends on the seed, the kind, the length and the number of the question, and on the tokenizer; how
many questions are asked for changes none of them.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lclm_jax.data.text.tokenizer import Tokenizer
from lclm_jax.errors import ConfigError
from lclm_jax.evaluation.questions import Passage, Question, ask
from lclm_jax.evaluation.tasks import filler
from lclm_jax.evaluation.tasks.settings import TaskSettings

DEFAULT_LENGTHS = (1024, 4096)
DEFAULT_COUNT = 50  # of questions of each kind and length
MAX_TOKENS = 32
OTHER_PROJECTS = 3  # whose facts a history also states
JOBS = 5  # that finish in a history of kind "order"
EARLY = 0.2  # part of a history of kind "retention" in which the fact stands
MISFITS = 12  # exchanges that do not fit, after which a history is full
# Keys and values. None is a part of another one, and none occurs in the filler.
WORDS = (
    *("kestrel", "heron", "falcon", "osprey", "plover", "curlew", "lapwing", "bittern"),
    *("cedar", "maple", "willow", "juniper", "hazel", "rowan", "alder", "poplar"),
    *("cobalt", "topaz", "garnet", "onyx", "jasper", "beryl", "quartz", "basalt"),
    *("saffron", "nutmeg", "fennel", "cumin", "ginger", "clove", "cardamom", "sorrel"),
    *("lantern", "anchor", "compass", "sextant", "rudder", "mizzen", "capstan", "halyard"),
    *("violin", "oboe", "cello", "bassoon", "zither", "guitar", "banjo", "fiddle"),
    *("otter", "badger", "weasel", "marten", "ermine", "beaver", "vole", "lynx"),
    *("comet", "nebula", "quasar", "pulsar", "meteor", "zenith", "eclipse", "corona"),
)
MIN_WORDS = 2 * (OTHER_PROJECTS + 1) + 2  # keys, values and two later values

Turn = filler.Turn
Exchange = filler.Exchange


@dataclass(frozen=True)
class Fact:
    """An attribute of a project: `values` in the order in which they are stated."""

    attribute: str
    key: str
    values: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """The facts of a history, and the question about them.

    Attributes:
        exchanges: that state the facts, in order.
        places: of each exchange in the history, from 0 for its beginning to 1 for its end, in
            ascending order.
        question: about one of the facts.
        answers: right answers.
        metric: name of the metric that compares an answer with them.
    """

    exchanges: Sequence[Exchange]
    places: Sequence[float]
    question: str
    answers: Sequence[str]
    metric: str = "contains_any"


# --- facts and questions ---

ATTRIBUTES = (
    *("passphrase", "meeting room", "release name", "storage bucket", "build server", "mascot"),
)


def _state(rng: random.Random, attribute: str, key: str, value: str) -> Exchange:
    """Return an exchange that states a fact, by the user or by a tool."""
    return rng.choice([_state_by_user, _state_by_tool])(rng, attribute, key, value)


def _state_by_user(rng: random.Random, attribute: str, key: str, value: str) -> Exchange:
    text = rng.choice(
        [
            f"For the record, the {attribute} of project {key} is {value}.",
            f"Before I forget it: the {attribute} of project {key} is {value}.",
            f"Please remember that the {attribute} of project {key} is {value}.",
        ]
    )
    return [("user", text), ("assistant", rng.choice(filler.ACKNOWLEDGEMENTS))]


def _state_by_tool(rng: random.Random, attribute: str, key: str, value: str) -> Exchange:
    text = rng.choice(
        [
            f"registry: the {attribute} of project {key} is {value}",
            f"1 result: the {attribute} of project {key} is {value}",
        ]
    )
    return [("assistant", rng.choice(filler.LOOK_UPS)), ("tool", text)]


def _change(rng: random.Random, attribute: str, key: str, value: str) -> Exchange:
    """Return an exchange that changes a fact."""
    text = rng.choice(
        [
            f"A change: from now on, the {attribute} of project {key} is {value}.",
            f"We had to change the {attribute} of project {key}; it is {value} now.",
        ]
    )
    return [("user", text), ("assistant", rng.choice(filler.ACKNOWLEDGEMENTS))]


def _draw_facts(rng: random.Random, words: Sequence[str], count: int) -> list[Fact]:
    """Return facts about several projects, the first of which has `count` values."""
    attribute = rng.choice(ATTRIBUTES)
    drawn = rng.sample(words, 2 * OTHER_PROJECTS + 1 + count)
    keys, values = drawn[: OTHER_PROJECTS + 1], drawn[OTHER_PROJECTS + 1 :]
    others = [
        Fact(attribute, key, [value]) for key, value in zip(keys[1:], values[count:], strict=True)
    ]
    return [Fact(attribute, keys[0], values[:count]), *others]


def _plan(
    rng: random.Random,
    others: Sequence[Fact],
    stated: Sequence[tuple[float, Exchange]],
    question: str,
    answers: Sequence[str],
    metric: str = "contains_any",
) -> Plan:
    """Return a plan of exchanges at their places, with those of other facts anywhere."""
    placed = [
        (rng.random(), _state(rng, fact.attribute, fact.key, fact.values[0])) for fact in others
    ]
    placed = sorted([*placed, *stated], key=lambda item: item[0])
    places, exchanges = [place for place, _ in placed], [exchange for _, exchange in placed]
    return Plan(exchanges, places, question, answers, metric)


def _plan_retention(rng: random.Random, words: Sequence[str]) -> Plan:
    fact, *others = _draw_facts(rng, words, 1)
    stated = _state(rng, fact.attribute, fact.key, fact.values[0])
    question = f"What is the {fact.attribute} of project {fact.key}?"
    return _plan(rng, others, [(EARLY * rng.random(), stated)], question, fact.values)


def _plan_update(rng: random.Random, words: Sequence[str]) -> Plan:
    fact, *others = _draw_facts(rng, words, rng.choice([2, 3]))
    first, *later = fact.values
    exchanges = [_state(rng, fact.attribute, fact.key, first)]
    exchanges += [_change(rng, fact.attribute, fact.key, value) for value in later]
    places = sorted(rng.random() for _ in exchanges)
    question = f"What is the {fact.attribute} of project {fact.key} now, after all changes?"
    stated = list(zip(places, exchanges, strict=True))
    return _plan(rng, others, stated, question, fact.values[-1:])


def _plan_contradiction(rng: random.Random, words: Sequence[str]) -> Plan:
    fact, *others = _draw_facts(rng, words, 2)
    sources = rng.sample([_state_by_user, _state_by_tool], 2)
    exchanges = [
        state(rng, fact.attribute, fact.key, value)
        for state, value in zip(sources, fact.values, strict=True)
    ]
    places = sorted(rng.random() for _ in exchanges)
    question = (
        f"The user and a tool disagree about the {fact.attribute} of project {fact.key}. "
        "What are the two values?"
    )
    stated = list(zip(places, exchanges, strict=True))
    return _plan(rng, others, stated, question, fact.values, "contains_all")


def _plan_order(rng: random.Random, words: Sequence[str]) -> Plan:
    jobs = rng.sample(words, JOBS)
    exchanges = [
        [("assistant", rng.choice(filler.LOOK_UPS)), ("tool", f"scheduler: job {job} finished")]
        for job in jobs
    ]
    places = sorted(rng.random() for _ in exchanges)
    i = rng.randrange(JOBS - 1)
    question = f"Which job finished right after job {jobs[i]}?"
    return Plan(exchanges, places, question, [jobs[i + 1]])


PLANNERS: dict[str, Callable[[random.Random, Sequence[str]], Plan]] = {
    "retention": _plan_retention,
    "update": _plan_update,
    "contradiction": _plan_contradiction,
    "order": _plan_order,
}
KINDS = tuple(PLANNERS)


# --- histories ---


def load(settings: TaskSettings) -> list[Question]:
    """Return `limit` questions of each kind and length. Raises ConfigError without a tokenizer."""
    if settings.tokenizer is None:
        raise ConfigError("expected a tokenizer to count the tokens of histories with, got none")
    lengths = settings.lengths or DEFAULT_LENGTHS
    count = DEFAULT_COUNT if settings.limit is None else settings.limit
    return list(generate(settings.tokenizer, lengths, count, seed=settings.seed))


def generate(
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    count: int,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    words: Sequence[str] = WORDS,
) -> Iterator[Question]:
    """Yield `count` questions about as many histories, for each length and kind.

    A task is called as in "histories_update@4096"; tags are `kind`, `length` and `family`. A
    history has at most `length` tokens, and falls short of it by a few turns at most. `words` are
    those of keys and values, for models that know few. Raises ConfigError for an unknown kind, too
    few different words, and a length that does not hold the facts.
    """
    if unknown := [kind for kind in kinds if kind not in PLANNERS]:
        raise ConfigError(f"kinds of histories are {', '.join(KINDS)}; got {unknown[0]}")
    words = sorted(set(words))
    if len(words) < MIN_WORDS:
        raise ConfigError(f"expected at least {MIN_WORDS} different words, got {len(words)}")
    for length in lengths:
        for kind in kinds:
            for number in range(count):
                rng = random.Random(f"{seed}/{kind}/{length}/{number}")
                plan = PLANNERS[kind](rng, words)
                turns = fill(plan, length, tokenizer, rng)
                yield _question(kind, length, number, plan, turns)


def _question(kind: str, length: int, number: int, plan: Plan, turns: Sequence[Turn]) -> Question:
    parts = [
        "This is the history of an agent's work.\n\n",
        Passage(show(turns)),
        f"\n\n{plan.question} Answer in a few words.",
    ]
    return ask(
        f"histories_{kind}@{length}",
        number,
        parts,
        references=plan.answers,
        metric=plan.metric,
        max_tokens=MAX_TOKENS,
        tags={"kind": kind, "length": length, "family": "histories"},
    )


def show(turns: Sequence[Turn]) -> str:
    """Return turns as text.

    >>> show([("user", "Where is it?"), ("tool", "1 result: here")])
    'user: Where is it?\\ntool: 1 result: here'
    """
    return "\n".join(f"{role}: {text}" for role, text in turns)


def fill(plan: Plan, length: int, tokenizer: Tokenizer, rng: random.Random) -> list[Turn]:
    """Return the turns of a history of at most `length` tokens.

    Raises ConfigError where the facts alone have more tokens.
    """

    def room_beside(exchanges: Sequence[Exchange]) -> int:
        return length - len(tokenizer.encode(show(_join(plan, exchanges))))

    exchanges: list[Exchange] = []
    room = room_beside(exchanges)
    if room < 0:
        least = length - room
        raise ConfigError(
            f"expected histories of at least {least} tokens, got a length of {length}"
        )
    # Tokens of the whole are about, not exactly, the sum of those of its parts.
    while drawn := _draw_filler(room, tokenizer, rng):
        exchanges += drawn
        room = room_beside(exchanges)
    while room < 0:
        exchanges.pop()
        room = room_beside(exchanges)
    return _join(plan, exchanges)


def _draw_filler(room: int, tokenizer: Tokenizer, rng: random.Random) -> list[Exchange]:
    """Return exchanges of at most `room` tokens together: all until several in a row do not fit."""
    exchanges: list[Exchange] = []
    misfits = 0
    while misfits < MISFITS:
        drawn = [filler.draw_exchange(rng) for _ in range(MISFITS)]
        texts = [f"\n{show(exchange)}" for exchange in drawn]
        for exchange, tokens in zip(drawn, tokenizer.encode_batch(texts), strict=True):
            if len(tokens) > room:
                misfits += 1
                continue
            exchanges.append(exchange)
            room -= len(tokens)
            misfits = 0
    return exchanges


def _join(plan: Plan, exchanges: Sequence[Exchange]) -> list[Turn]:
    """Return the turns of filler with those of the facts at their places."""
    turns: list[Turn] = []
    start = 0
    for place, fact in zip(plan.places, plan.exchanges, strict=True):
        stop = round(place * len(exchanges))
        for exchange in [*exchanges[start:stop], fact]:
            turns += exchange
        start = stop
    for exchange in exchanges[start:]:
        turns += exchange
    return turns
