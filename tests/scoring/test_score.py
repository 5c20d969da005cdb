"""Scores of records: losses of the trained tokens by record and view."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lclm_jax.data.loading import RowBudget, assemble, fill_row
from lclm_jax.data.records import VIEWS, Context, Plain, lay_out
from lclm_jax.model.lclm import LCLM, apply, cast
from lclm_jax.scoring import Score, score, token_losses
from tests.support.records import ids, with_noise


def losses_of(params, record, config, memory):
    """The losses of a record's trained tokens and if each was the best guess, from its logits."""
    example = lay_out(record, config, memory)
    budget = RowBudget.for_model(config, len(example), max(1, len(example.pieces)))
    hidden = apply(config, params, assemble([fill_row(budget, [example])]))
    logits = apply(config, params, hidden, method=LCLM.logits)[0]
    trained = example.weights > 0
    targets = example.targets[trained]
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))[trained]
    chosen = log_probabilities[np.arange(len(targets)), targets]
    return -chosen, log_probabilities.argmax(axis=-1) == targets


def test_every_record_is_scored_by_itself_in_every_view(model_config, params, tokenizer):
    params, memory = with_noise(params), tokenizer.memory
    records = [
        [Context(ids(*range(20, 40))), Plain(ids(5, 6, 7), True)],
        [Plain(ids(9)), Context(ids(*range(50, 55))), Plain(ids(8), True), Plain(ids(3))],
    ]
    scores = score(params, records, model_config, memory)
    assert list(scores) == list(VIEWS)
    for name, view in VIEWS.items():
        for record, scored in zip(records, scores[name], strict=True):
            losses, right = losses_of(params, view(record), model_config, memory)
            assert (scored.tokens, scored.correct) == (len(losses), right.sum())
            assert scored.nll == pytest.approx(losses.sum(), rel=1e-4)


def test_losses_are_computed_in_the_dtype_of_the_model(model_config, params, one_batch):
    """Whatever the dtype of the parameters."""
    config, params = replace(model_config, dtype="bfloat16"), with_noise(params)
    losses = token_losses(params, one_batch, config, 256)[1]
    assert np.array_equal(losses, token_losses(cast(params, "bfloat16"), one_batch, config, 256)[1])
    exact = token_losses(params, one_batch, model_config, 256)[1]
    assert not np.array_equal(losses, exact)
    np.testing.assert_allclose(losses, exact, atol=0.1)


def test_scores_add_up():
    total = Score(2.0, 1.0, 4.0) + Score(4.0, 2.0, 4.0)
    assert total.to_dict() == {"loss": 0.75, "accuracy": 0.375, "tokens": 8.0}
    assert np.isnan(Score().loss) and np.isnan(Score().accuracy)
