"""The table of first tokens, and the command that prints it."""

import io

import jax
import pytest
from rich.console import Console

import launch.efficiency
from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.evaluation.identity import check_model
from lclm_jax.inference.language_model import load
from lclm_jax.reports.efficiency import list_failures, tabulate_first_tokens

ROW = {
    "view": "latents 16x",
    "length": 65536,
    "first_token_seconds": 0.2134,
    "compress_seconds": 0.139,
    "prefill_seconds": 0.074,
    "standard_deviation": 0.0012,
    "peak_bytes": 21.1e9,
    "peak_is_exact": True,
    "failure": None,
    "windows_at_once": 128,
    "warm_ups": 20,
    "repeats": 30,
    "device": "NVIDIA H200",
    "source": "measured",
}


def print_row(**changes) -> list[str]:
    """Return the cells of the table's only row."""
    output = io.StringIO()
    Console(file=output, width=200).print(tabulate_first_tokens([{**ROW, **changes}]))
    (line,) = (line for line in output.getvalue().splitlines() if line.startswith("│"))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_row_stands_beside_the_papers():
    assert print_row() == [
        "latents 16x", "65,536", "0.213 ± 0.0012", "0.139", "0.074", "21.1 GB", "20 + 30", "128",
        "NVIDIA H200", "measured", "0.478 s, 17.4 GB",
    ]  # fmt: skip
    text = print_row(view="text", windows_at_once=None, peak_is_exact=False)
    assert text[5:8] == ["< 21.1 GB", "20 + 30", "–"] and text[-1] == "4.47 s, 35.4 GB"
    assert print_row(view="latents 5x")[-1] == "–"


def test_a_row_of_the_compiler_has_no_rounds():
    row = print_row(source="compiler", standard_deviation=None)
    assert (row[2], row[6]) == ("0.213", "–")


def test_a_row_without_figures_has_its_reason():
    missing = dict.fromkeys(
        ("first_token_seconds", "compress_seconds", "prefill_seconds", "standard_deviation",
         "peak_bytes")
    )  # fmt: skip
    failed = {**missing, "failure": "RESOURCE_EXHAUSTED: 5 bytes"}
    assert print_row(**failed)[2:6] == ["–"] * 4
    assert list_failures([ROW, {**ROW, **failed}]) == [
        "latents 16x, 65,536 tokens on NVIDIA H200: RESOURCE_EXHAUSTED: 5 bytes"
    ]


@pytest.fixture
def checkpoint(tmp_path, model_config, params, tokenizer):
    save_model(tmp_path / "model", model_config, tokenizer, params)
    return tmp_path / "model"


def test_the_command_measures_once(checkpoint, tmp_path, command, capsys):
    out = tmp_path / "out"
    arguments = ("--checkpoint", checkpoint, "--lengths", "64,32768", "--repeats", 1, "--out", out)
    assert command(launch.efficiency, *arguments) == 0
    printed = capsys.readouterr().out
    assert "latents 4x" in printed and "1 + 1" in printed
    assert "text, 32,768 tokens on cpu: prompt and answer take up to 32768" in printed
    rows = (out / "efficiency.jsonl").read_text(encoding="utf-8")
    assert len(rows.splitlines()) == 4
    assert command(launch.efficiency, *arguments) == 0
    assert (out / "efficiency.jsonl").read_text(encoding="utf-8") == rows
    assert capsys.readouterr().out == printed


def test_the_command_refuses_the_directory_of_another_model(
    checkpoint, tmp_path, model_config, params, tokenizer, command, capsys
):
    other = jax.tree.map(lambda x: x + 1, params)
    save_model(tmp_path / "other", model_config, tokenizer, other)
    out = tmp_path / "out"
    check_model(out, load(tmp_path / "other"))
    arguments = ("--checkpoint", checkpoint, "--lengths", "64", "--out", out)
    assert command(launch.efficiency, *arguments) == 2
    assert "has answers of" in capsys.readouterr().err
    assert not (out / "efficiency.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--ratios", "5"), "the model compresses at ratio 4; got 5"),
        (("--lengths", "0"), "must be an integer, from 1"),
        (("--slice", "v6e-8"), "expected CHIP:SHAPE"),
    ],
)
def test_the_command_names_a_bad_argument(changed, message, checkpoint, tmp_path, command, capsys):
    given = {"--checkpoint": checkpoint, "--lengths": "64", "--out": tmp_path / "out"}
    given |= dict([changed])
    status = command(launch.efficiency, *[part for pair in given.items() for part in pair])
    assert status == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
