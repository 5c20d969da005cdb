"""The page of a sweep says what its cells show, and no more."""

from itertools import product

import pytest

from lclm_jax.reports.sweep_page import write_page
from lclm_jax.sweeps.cells import Cell, Expectation, Sweep, control_of
from tests.support.sweep_results import make_result, write_result


@pytest.fixture
def architectures(config, tmp_path):
    """A sweep of two poolings with three seeds, in which concat is better by 0.2."""
    cells = [
        Cell(f"{pooling}-{seed}", config, {"pooling": pooling, "seed": seed}, published)
        for pooling, published in (("mean", (1.169, 1.169)), ("concat", (1.2, 1.3)))
        for seed in (0, 1, 2)
    ]
    expected = Expectation(({"pooling": "mean"}, {"pooling": "concat"}), "as <b>published</b>")
    sweep = Sweep((*cells, control_of(cells[0], seed=0)), expectations=(expected,))
    for cell in sweep.cells[:-1]:
        loss = {"mean": 1.4, "concat": 1.2}[str(cell.levels["pooling"])]
        write_result(tmp_path, make_result(cell, loss + 0.01 * int(cell.levels["seed"]) ** 2))
    write_result(tmp_path, make_result(sweep.cells[-1], 0.5))
    return sweep


def test_settings_differences_and_expectations_are_on_the_page(architectures, tmp_path):
    page = write_page("s.py", architectures, tmp_path).read_text(encoding="utf-8")
    assert "Lowest loss: pooling concat" in page
    assert "pooling: concat less mean" in page and "-0.2000" in page
    assert "1.2 to 1.3" in page  # the paper's range
    assert "as &lt;b&gt;published&lt;/b&gt;" in page
    assert "--sweep s.py" in page and "7 of 7" in page
    assert "Scaling law" not in page and "Without a result" not in page


def test_unfinished_cells_are_named(architectures, tmp_path):
    extra = Cell("mean-3", architectures.cells[0].config, {"pooling": "mean", "seed": 3})
    sweep = Sweep((*architectures.cells, extra))
    page = write_page("s.py", sweep, tmp_path).read_text(encoding="utf-8")
    assert "Without a result" in page and "mean-3" in page and "7 of 8" in page


def test_sizes_have_a_law_and_a_best_encoder(config, tmp_path):
    cells = []
    for encoder, decoder, seed in product((1e5, 4e5, 1.6e6), (1e6, 4e6, 1.6e7), (0, 1)):
        levels = {"encoder": encoder, "decoder": decoder, "seed": seed}
        cells.append(Cell(f"{len(cells)}", config, levels))
        loss = 1 + 0.3 * (encoder / 1e6) ** -0.4 + 0.4 * (decoder / 1e7) ** -0.3 + 1e-4 * seed
        write_result(tmp_path, make_result(cells[-1], loss, int(encoder), int(decoder)))
    page = write_page("s.py", Sweep(tuple(cells)), tmp_path).read_text(encoding="utf-8")
    assert "Scaling law" in page and "How large should the encoder be?" in page
    assert "best encoder has" in page and "encoder.exponent" in page
    assert "The decoder takes the rest of the budget" in page


def test_too_few_cells_for_a_law_are_an_answer(config, tmp_path):
    cells = [
        Cell(f"{encoder}", config, {"encoder": encoder, "seed": 0}) for encoder in (1000, 4000)
    ]
    for cell in cells:
        write_result(tmp_path, make_result(cell, 1.0, int(cell.levels["encoder"])))
    page = write_page("s.py", Sweep(tuple(cells)), tmp_path).read_text(encoding="utf-8")
    assert "No law was fitted" in page and "train more cells" in page
