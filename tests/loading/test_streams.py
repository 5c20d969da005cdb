"""The input pipeline: one global mixture that resumes at any step on any number of hosts."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import Config, ConfigError, Stream
from lclm_jax.data.loading import PackedBatches, StageData, prefetch_batches, row_budget, sources
from lclm_jax.data.records import Context
from lclm_jax.data.synthetic.corpus import train_tokenizer
from tests.support.records import same, write_sources

pytestmark = pytest.mark.newest


def share(config, host, hosts):
    """The rows of one of `hosts`."""
    rows = config.data.batch_rows // hosts
    return range(host * rows, (host + 1) * rows)


def mixture_of(config, tokenizer, stage=0, split="train"):
    return StageData(config, config.stages[stage], tokenizer).mix_streams(split)


def packed(config, tokenizer, host=0, hosts=1):
    return iter(PackedBatches(mixture_of(config, tokenizer), share(config, host, hosts)))


def prefetched(config, tokenizer):
    return iter(prefetch_batches(mixture_of(config, tokenizer)))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def through_json(state):
    return json.loads(json.dumps(state))


def test_batches_have_the_configured_shape_and_all_differ(config, tokenizer):
    batches = take(packed(config, tokenizer), 3)
    for batch in batches:
        assert batch.tokens.shape == (8, 96)
        assert batch.windows.tokens.shape == (8, 4, 16)
        assert (batch.segments.max(axis=1) >= 1).all()
        assert (batch.slots.max(axis=1) < 4 * 4).all()
        assert not batch.weights[batch.segments == 0].any()
    assert not any(same(batch, other) for batch, other in pairwise(batches))


@pytest.mark.parametrize("make", [packed, prefetched])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_restored_pipeline_goes_on_where_it_was(config, tokenizer, make, before):
    first = make(config, tokenizer)
    take(first, before)
    state = first.get_state()
    later = take(first, 3)
    second = make(config, tokenizer)
    second.set_state(through_json(state))
    assert all(same(*pair) for pair in zip(later, take(second, 3), strict=True))


def test_a_pipeline_can_be_set_back(config, tokenizer):
    batches = packed(config, tokenizer)
    state = batches.get_state()
    start = take(batches, 2)
    batches.set_state(state)
    assert all(same(*pair) for pair in zip(start, take(batches, 2), strict=True))


def test_prefetching_changes_nothing(config, tokenizer):
    pairs = zip(
        take(packed(config, tokenizer), 3), take(prefetched(config, tokenizer), 3), strict=True
    )
    assert all(same(*pair) for pair in pairs)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_batches_of_one(config, tokenizer, hosts):
    alone = take(packed(config, tokenizer), 2)
    shares = [take(packed(config, tokenizer, host, hosts), 2) for host in range(hosts)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert all(len(part.tokens) == 8 // hosts for part in parts)
        assert same(batch, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))


def test_a_state_saved_on_four_hosts_goes_on_with_two(config, tokenizer):
    states = []
    for host in range(4):
        batches = packed(config, tokenizer, host, 4)
        take(batches, 2)
        states.append(batches.get_state())
    assert all(state == states[0] for state in states)
    expected = take(packed(config, tokenizer), 3)[2]
    restored = [packed(config, tokenizer, host, 2) for host in range(2)]
    for batches in restored:
        batches.set_state(through_json(states[3]))
    parts = [next(batches) for batches in restored]
    assert same(expected, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))


def test_too_long_examples_are_counted_by_stream_and_all_others_are_read_once(config, tokenizer):
    short = replace(config, data=replace(config.data, row_positions=48))
    batches = packed(short, tokenizer)
    emitted = take(batches, 6)
    state, limits = batches.get_state(), row_budget(short, short.stages[0])
    mixture = mixture_of(short, tokenizer)
    sizes = [mixture.sizes[i] for i in range(state["next"])]
    too_long = Counter(str(stream) for stream, size in sizes if not limits.fits(size))
    assert (
        state["left_out"] == {stream: {"too long": count} for stream, count in too_long.items()}
        and too_long.total() > 10
    )
    restored = packed(short, tokenizer)
    restored.set_state(through_json(state))
    assert restored.get_state() == state
    fitting = {i for i, (_, size) in enumerate(sizes) if limits.fits(size)}
    expected = Counter(
        tuple(mixture.examples[i].tokens.tolist()) for i in fitting - set(state["waiting"])
    )
    assert expected == Counter(
        tuple(tokens[segments == n].tolist())
        for batch in emitted
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True)
        for n in range(1, segments.max() + 1)
    )


def test_documents_too_short_for_two_segments_are_counted_and_left_out(config, tokenizer, tmp_path):
    texts = [{"text": "print(1) " * count} for count in (1, 1, 1, 9, 9, 9)]
    write_sources(tmp_path, tokenizer, {"docs": ("code", texts)})
    stage = replace(config.stages[0], streams=(Stream("interleaved", "docs", 1.0),))
    here = replace(
        config,
        stages=(stage,),
        data=replace(config.data, directory=str(tmp_path), packing_lookahead=6),
    )
    batches = iter(PackedBatches(mixture_of(here, tokenizer)))
    next(batches)
    state = batches.get_state()
    assert state["left_out"]["0"]["too short"] == pytest.approx(state["next"] / 2, abs=3)


def test_sizes_are_those_of_the_examples(config, tokenizer):
    mixture = mixture_of(config, tokenizer)
    for i in range(60):
        (stream, size), example = mixture.sizes[i], mixture.examples[i]
        assert (stream, size.positions, size.trained) == (
            example.stream,
            len(example),
            example.weights.sum(),
        )
        assert size.pieces == tuple((len(piece.tokens), piece.latents) for piece in example.pieces)


def test_a_host_reads_the_tokens_of_its_own_rows_only(config, tokenizer, monkeypatch):
    batches = packed(config, tokenizer, 1, 4)
    read, unpack = [], sources.unpack
    monkeypatch.setattr(sources, "unpack", lambda packed: read.append(1) or unpack(packed))
    batch = next(batches)
    assert len(read) == batch.segments.max(axis=1).sum() < batches.get_state()["next"]


@settings(max_examples=15, deadline=None)
@given(
    hosts=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=2, max_size=4), seed=st.integers(0, 3)
)
def test_any_hosts_may_go_on_from_any_others(config_once, tokenizer, hosts, seed):
    """A batch at each of these host counts in turn, restored in between, continues one mixture."""
    config = replace(config_once, data=replace(config_once.data, seed=seed))
    mixture = mixture_of(config, tokenizer)
    alone = iter(PackedBatches(mixture))
    state = alone.get_state()
    for count in hosts:
        expected, states = next(alone), []
        parts = []
        for host in range(count):
            batches = iter(PackedBatches(mixture, share(config, host, count)))
            batches.set_state(through_json(state))
            parts.append(next(batches))
            states.append(batches.get_state())
        assert same(expected, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))
        assert all(state == states[0] for state in states)
        state = states[-1]


def test_fewer_examples_than_hosts_are_an_error(config, tokenizer, tmp_path):
    write_sources(tmp_path, tokenizer, {"docs": ("code", [{"text": "print(1) " * 30}] * 3)})
    stage = replace(config.stages[0], streams=(Stream("interleaved", "docs", 1.0),))
    here = replace(config, stages=(stage,), data=replace(config.data, directory=str(tmp_path)))
    with pytest.raises(ConfigError, match="at least one example for each of 4 hosts, got 3"):
        prefetch_batches(mixture_of(here, tokenizer), share(here, 0, 4))
    assert (
        len(next(iter(prefetch_batches(mixture_of(here, tokenizer), share(here, 0, 2)))).tokens)
        == 4
    )


def test_streams_have_their_shares_of_the_trained_tokens(config, tokenizer):
    mixture = mixture_of(config, tokenizer)
    trained = Counter()
    for i in range(3000):
        stream, size = mixture.sizes[i]
        trained[stream] += size.trained if mixture.budget.fits(size) else 0
    shares = [trained[i] / trained.total() for i in range(3)]
    assert np.allclose(shares, (0.5, 0.3, 0.2), atol=0.02)


def test_a_stream_that_never_fits_is_an_error(config, tokenizer):
    small = replace(config, data=replace(config.data, row_positions=20))
    stage = replace(small.stages[0], streams=(Stream("sft", "tasks", 1.0),))
    with pytest.raises(
        ConfigError, match="none of 20 examples of stream sft/tasks fits a row of 20 positions"
    ):
        mixture_of(replace(small, stages=(stage,)), tokenizer)


def test_another_tokenizer_reads_the_same_examples_anew(config, tokenizer):
    other = train_tokenizer(["Ada likes pears and Ben likes figs " * 20], vocab=400)
    first, two = (mixture_of(config, reader) for reader in (tokenizer, other))
    for number in (0, 3, 5):
        assert two.sizes[number][1].positions == len(two.examples[number])
    for reader, mixture in ((tokenizer, first), (other, two)):
        task = next(i for i in range(200) if mixture.sizes[i][0] == 2)
        assert "Who likes figs?" in reader.decode(mixture.examples[task].tokens)


def test_examples_depend_on_their_number_stage_and_seed_alone(config, tokenizer):
    def tokens(config: Config, stage=0):
        examples = mixture_of(config, tokenizer, stage).examples
        return [examples[i].tokens.tolist() for i in (7, 0, 150)]

    assert tokens(config) == tokens(config)
    assert tokens(config) != tokens(config, stage=1)
    assert tokens(config) != tokens(replace(config, data=replace(config.data, seed=1)))


def test_every_pass_over_a_source_is_in_a_new_order(config, tokenizer):
    stage = replace(config.stages[0], streams=(Stream("reconstruction", "docs", 1.0),))
    whole = replace(
        config,
        stages=(stage,),
        data=replace(config.data, reconstruction_length=None, row_positions=4000, row_windows=100),
    )
    examples = mixture_of(whole, tokenizer).examples
    passes = [
        [tuple(examples[start + i].pieces[0].tokens.tolist()) for i in range(50)]
        for start in (0, 50)
    ]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    assert len(set(passes[0])) == 50


def test_a_stage_without_compression_reads_the_same_tokens_as_text(config, tokenizer):
    compressed = mixture_of(config, tokenizer).examples
    stage = replace(config.stages[0], compress=False)
    plain = mixture_of(replace(config, stages=(stage, config.stages[1])), tokenizer).examples
    for i in range(20):
        assert plain[i].pieces == [] and (plain[i].slots == -1).all()
        assert plain[i].weights.tolist() == [1.0] * (len(plain[i]) - 1) + [0.0]
        tokens = [piece.tokens.tolist() for piece in compressed[i].pieces]
        text = plain[i].tokens.tolist()
        assert all(any(text[s : s + len(h)] == h for s in range(len(text))) for h in tokens)


def test_a_stream_of_plain_contexts_trains_on_the_same_tokens(config, tokenizer):
    streams = tuple(replace(stream, plain_contexts=1.0) for stream in config.stages[0].streams)
    stage = replace(config.stages[0], streams=streams)
    compressed = mixture_of(config, tokenizer).examples
    plain = mixture_of(replace(config, stages=(stage, config.stages[1])), tokenizer).examples
    for i in range(20):
        assert plain[i].pieces == []
        trained = [
            x.tokens[np.flatnonzero(x.weights) + 1].tolist() for x in (compressed[i], plain[i])
        ]
        assert trained[0] == trained[1] != []


def test_a_reader_compresses_where_its_stream_has_plain_contexts(config, tokenizer):
    streams = tuple(replace(stream, plain_contexts=1.0) for stream in config.stages[0].streams)
    plain = StageData(config, replace(config.stages[0], streams=streams), tokenizer)
    compressed = StageData(config, config.stages[0], tokenizer)
    for reader, expected in zip(plain.open_streams(), compressed.open_streams(), strict=True):
        assert not any(isinstance(span, Context) for span in reader.record(0))
        assert repr(reader.compressing().record(0)) == repr(expected.record(0))


def test_held_out_examples_come_from_the_held_out_file(config, tokenizer, tmp_path):
    stage = replace(config.stages[0], streams=(Stream("interleaved", "docs", 1.0),))
    here = replace(config, stages=(stage,), data=replace(config.data, directory=str(tmp_path)))
    sources = {"docs": ("text", [{"text": "import " * 40}])}
    write_sources(tmp_path, tokenizer, sources, splits=("held",))
    assert len(mixture_of(here, tokenizer, split="held").examples[0].tokens)
    with pytest.raises(
        ConfigError, match="source docs has no train examples; leave stream interleaved/docs out"
    ):
        mixture_of(here, tokenizer)
