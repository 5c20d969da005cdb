"""The input pipeline: one global order, mixed and packed, resumed at any point and any number of hosts."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from records import same

from lclm_jax.config import Config, ConfigError, Stream
from lclm_jax.data.sources import source_path, write_source
from lclm_jax.data.streams import PackedBatches, budget, stage_batches, stage_examples


def packed(config, tokenizer, host=0, hosts=1):
    return iter(PackedBatches(stage_examples(config, config.stages[0], tokenizer), config, host, hosts))


def prefetched(config, tokenizer, host=0, hosts=1):
    return iter(stage_batches(config, config.stages[0], tokenizer, host, hosts))


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
    assert not any(same(one, other) for one, other in pairwise(batches))


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
    pairs = zip(take(packed(config, tokenizer), 3), take(prefetched(config, tokenizer), 3), strict=True)
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


def test_rows_must_divide_over_the_hosts(config, tokenizer):
    with pytest.raises(ConfigError, match="data.rows must divide over the hosts, got data.rows=8 on 3 hosts"):
        stage_batches(config, config.stages[0], tokenizer, 0, 3)


def test_too_long_examples_are_counted_by_stream_and_left_out(config, tokenizer):
    short = replace(config, data=replace(config.data, positions=44))
    batches = packed(short, tokenizer)
    emitted = take(batches, 4)
    state, limits = batches.get_state(), budget(short)
    examples = stage_examples(short, short.stages[0], tokenizer)
    seen = [examples[i] for i in range(state["next"])]
    too_long = Counter(str(example.stream) for example in seen if not limits.fits_alone(example))
    assert state["too_long"] == too_long and too_long.total() > 10
    restored = packed(short, tokenizer)
    restored.set_state(through_json(state))
    assert restored.get_state() == state
    out = sum(int(batch.segments.max(axis=1).sum()) for batch in emitted)
    waiting = [number for numbers in state["open"] for number in numbers]
    assert out + len(waiting) + too_long.total() == state["next"]
    told = {tuple(seen[i].tokens.tolist()) for i in range(len(seen)) if i not in waiting and limits.fits_alone(seen[i])}
    for batch in emitted:
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
            assert {tuple(tokens[segments == n].tolist()) for n in range(1, segments.max() + 1)} <= told


def test_streams_are_mixed_by_their_shares(config, tokenizer):
    examples = stage_examples(config, config.stages[0], tokenizer)
    streams = Counter(examples[i].stream for i in range(1000))
    assert all(abs(streams[number] - expected) <= 1 for number, expected in enumerate((500, 300, 200)))


def test_examples_depend_on_their_number_stage_and_seed_alone(config, tokenizer):
    def tokens(settings: Config, stage=0):
        examples = stage_examples(settings, settings.stages[stage], tokenizer)
        return [examples[i].tokens.tolist() for i in (7, 0, 150)]

    assert tokens(config) == tokens(config)
    assert tokens(config) != tokens(config, stage=1)
    assert tokens(config) != tokens(replace(config, data=replace(config.data, seed=1)))


def test_every_pass_over_a_source_is_in_a_new_order(config, tokenizer):
    one = replace(config.stages[0], streams=(Stream("reconstruction", "docs", 1.0),))
    whole = replace(config, stages=(one,), data=replace(config.data, reconstruction=(400, 400)))
    examples = stage_examples(whole, one, tokenizer)
    passes = [[tuple(examples[start + i].pieces[0].tokens.tolist()) for i in range(50)] for start in (0, 50)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    assert len(set(passes[0])) == 50


def test_a_stage_without_compression_reads_the_same_tokens_as_text(config, tokenizer):
    compressed = stage_examples(config, config.stages[0], tokenizer)
    stage = replace(config.stages[0], compress=False)
    plain = stage_examples(replace(config, stages=(stage, config.stages[1])), stage, tokenizer)
    for i in range(20):
        assert plain[i].pieces == [] and (plain[i].slots == -1).all()
        assert plain[i].weights.tolist() == [1.0] * (len(plain[i]) - 1) + [0.0]
        held = [piece.tokens.tolist() for piece in compressed[i].pieces]
        text = plain[i].tokens.tolist()
        assert all(any(text[s : s + len(h)] == h for s in range(len(text))) for h in held)


def test_held_out_examples_come_from_the_held_out_file(config, tokenizer, tmp_path):
    for split, token in (("train", 5), ("held", 6)):
        write_source(source_path(tmp_path, "docs", split), [{"tokens": np.full(40, token), "kind": "text"}])
    stage = replace(config.stages[0], streams=(Stream("interleaved", "docs", 1.0),))
    here = replace(config, stages=(stage,), data=replace(config.data, directory=str(tmp_path)))
    assert set(stage_examples(here, stage, tokenizer, "held")[0].pieces[0].tokens.tolist()) == {6}
    assert set(stage_examples(here, stage, tokenizer)[0].pieces[0].tokens.tolist()) == {5}
