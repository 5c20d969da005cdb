"""Every command reports a user's mistake in one line and ends with status 2."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lclm_jax.checkpoint.model_files import save_model
from lclm_jax.cli import BROKEN_PIPE_STATUS
from lclm_jax.config import ConfigError
from lclm_jax.errors import UserError, describe
from lclm_jax.evaluation.held_out import EvaluationConfig
from lclm_jax.experiment import load_experiment, load_recipe
from lclm_jax.files.reading import read_json
from tests.support.paths import MODELS, ROOT

TINY, SMALL = ROOT / "configs" / "tiny.py", MODELS / "small"
SCRATCH = ROOT / "configs" / "scratch_0p6b.py"  # it prepares nothing
RECIPE = ROOT / "configs" / "recipes" / "agent.py"
# Arguments of every command, BAD being the path that is wrong: sources, and places to write.
READS = {
    "launch.train": [["--config", "BAD"], ["--config", SCRATCH, "--set", "data.directory=BAD"]],
    "launch.ablate": [["--sweep", "BAD", "--dry-run"], ["--sweep", "BAD", "--out", "NEW"]],
    "launch.chat": [["--checkpoint", "BAD"]],
    "launch.demo": [["--config", "BAD"]],
    "launch.compress": [[TINY, "--store", "NEW", "--checkpoint", "BAD"]],
    "launch.ask": [
        ["--store", "BAD", "Who?"],
        ["--store", "NEW", "--checkpoint", "BAD", "Who?"],
    ],
    "launch.agent": [
        ["--store", "BAD", "Who?"],
        ["--store", "NEW", "--checkpoint", "BAD", "Who?"],
    ],
    "launch.store": [[action, "BAD"] for action in ("ls", "verify", "gc")],
    "launch.evaluate": [["--checkpoint", "BAD", "--tasks", "histories", "--out", "NEW"]],
    "launch.tune": [
        ["--checkpoint", "NEW", "--documents", "NEW", "--questions", "BAD", "--out", "NEW"]
    ],
    "launch.capacity": [["--config", "BAD", "--slice", "v5p:1x1x1"]],
    "launch.compare": [["BAD", "NEW"]],
    "launch.efficiency": [["--checkpoint", "BAD", "--lengths", "64", "--out", "NEW"]],
    "launch.inspect_data": [["BAD"], ["NEW", "--config", "BAD"]],
    "launch.prepare": [
        ["--recipe", "BAD", "--out", "NEW"],
        ["--recipe", RECIPE, "--inputs", "BAD", "--out", "NEW"],
        ["--recipe", RECIPE, "--inputs", "NEW", "--tokenizer", "BAD", "--out", "NEW"],
    ],
    "launch.generate": [
        ["--checkpoint", "BAD", "--context", TINY, "--prompt", "Who?"],
        ["--checkpoint", "NEW", "--context", "BAD", "--prompt", "Who?"],
    ],
    "launch.replay": [["BAD"]],
    "launch.report": [["BAD"]],
    "launch.show": [
        ["--config", "BAD"],
        ["--config", TINY.with_name("small.py"), "--checkpoint", "BAD"],
    ],
    "launch.bench.data": [["NEW", "--config", "BAD"]],
    "convert.from_hf": [["BAD", "NEW"]],
    "convert.to_hf": [["BAD", "NEW"]],
    "convert.verify": [
        ["BAD", "NEW"],
        [SMALL, "BAD"],
        [SMALL, "NEW", "--golden", "BAD"],
    ],
    "convert.from_towers": [
        ["--encoder", "BAD", "--decoder", SMALL / "decoder", "--out", "NEW"],
        ["--encoder", SMALL / "encoder", "--decoder", "BAD", "--out", "NEW"],
        [
            "--random",
            "--encoder",
            "qwen3-0.6b",
            "--decoder",
            "qwen3-0.6b",
            "--out",
            "NEW",
            "--tokenizer",
            "BAD",
        ],
    ],
}
WRITES = {
    "launch.samples": [["--out", "BAD"]],
    "convert.verify.stdlib_tasks": [["BAD"]],
    "launch.bench.capacity": [["--directory", "BAD", "--only", "decode-16x-v6e:1x1"]],
    "tests.soak": [["BAD"]],
    "launch.bench.accelerator": [["--out", "BAD", "--tiny"]],
    "launch.bench.inference": [["--out", "BAD", "--tiny"]],
    "launch.bench.data": [["BAD"]],
    "launch.bench.convert": [["BAD"]],
    "convert.from_hf": [[SMALL, "BAD"]],
    "convert.from_towers": [
        ["--encoder", SMALL / "encoder", "--decoder", SMALL / "decoder", "--out", "BAD"]
    ],
}
# Commands without a case above: parts that other commands start, two that import torch, and one
# that only counts lines of code.
OTHERS = {
    "convert.verify.harness",
    "tests.soak.faults",
    "launch.bench.accelerator.section",
    "launch.bench",
    "launch.bench.code",
}


def modules() -> set[str]:
    """Every module that is a command."""
    files = [
        file for room in ("launch", "convert", "tests/soak") for file in (ROOT / room).rglob("*.py")
    ]
    commands = [file for file in files if "\nif __name__" in file.read_text(encoding="utf-8")]
    dotted = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in commands]
    return {name.removesuffix(".__main__") for name in dotted}


def test_every_command_has_cases():
    assert modules() == set(READS) | set(WRITES) | OTHERS


def import_command(name: str):
    """Return the module with the function `main` of a command."""
    module = importlib.import_module(name)
    return module if hasattr(module, "main") else importlib.import_module(f"{name}.__main__")


def bad_sources(directory: Path) -> dict[str, str]:
    file, binary, broken = (directory / name for name in ("file.py", "binary", "broken.py"))
    file.write_text("x = 1\n", encoding="utf-8")
    binary.write_bytes(bytes(range(256)))
    broken.write_text("def config(:\n", encoding="utf-8")
    (directory / "empty").mkdir()
    return {
        "absent": str(directory / "absent"),
        "below a file": str(file / "inside"),
        "a file of something else": str(file),
        "binary": str(binary),
        "broken": str(broken),
        "an empty directory": str(directory / "empty"),
        "too long a name": str(directory / ("x" * 300)),
        "empty": "",
        "of nobody": "~nobody-has-this-name/x",
    }


def bad_places(directory: Path) -> dict[str, str]:
    file = directory / "file"
    file.touch()
    return {
        "a file": str(file),
        "below a file": str(file / "inside"),
        "too long a name": str(directory / ("x" * 300)),
        "a file system of the kernel": "/proc/lclm_jax",
        "empty": "",
        "of nobody": "~nobody-has-this-name/x",
    }


def assert_one_line(status: int, written, case):
    assert status == 2, (case, status, written.err[-2000:])
    assert "Traceback" not in written.err, (case, written.err[-2000:])
    lines = [line for line in written.err.splitlines() if "error: " in line]
    assert (
        len(lines) == 1 and lines[0] == written.err.splitlines()[-1]
    ) or "\n  " in written.err, (
        case,
        written.err,
    )


@pytest.mark.parametrize("name", READS)
def test_a_source_that_cannot_be_read_is_named(name, tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_command(name)
    for case, bad in bad_sources(tmp_path).items():
        for arguments in READS[name]:
            new = str(tmp_path / "new")
            given = [
                str(argument).replace("BAD", bad).replace("NEW", new) for argument in arguments
            ]
            capsys.readouterr()
            assert_one_line(command(module, *given), capsys.readouterr(), (name, case, given))
            assert not Path(new).exists() and not Path("~nobody-has-this-name").exists()


@pytest.mark.parametrize("name", WRITES)
def test_a_place_that_cannot_be_written_is_named(name, tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_command(name)
    for case, bad in bad_places(tmp_path).items():
        for arguments in WRITES[name]:
            given = [str(argument).replace("BAD", bad) for argument in arguments]
            capsys.readouterr()
            assert_one_line(command(module, *given), capsys.readouterr(), (name, case, given))


# --- Configs that are programs ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def config(:", r"line 1: SyntaxError"),
        ("\n\nimport nowhere_to_be_found", r"line 3: ModuleNotFoundError: No module named"),
        ("def config():\n    return 1 / 0", r"line 2: ZeroDivisionError: division by zero"),
        ("def config():\n    raise SystemExit", r"line 2: SystemExit: no message"),
        ("def config():\n    return 1", r"config\(\) must return a Config, got int"),
        ("config = 1", r"has no function config\(\)"),
        ("experiment = 1", r"has no function experiment\(\)"),
        ("def experiment():\n    return 1", r"experiment\(\) must return a Experiment, got int"),
        ("def experiment():\n    return 1 / 0", r"line 2: ZeroDivisionError: division by zero"),
        (
            "from configs.scratch_0p6b import config\n\n\ndef prepare(config):\n    pass",
            r"prepare\(\) that nothing calls; expected a function experiment\(\)",
        ),
        (
            "from configs.scratch_0p6b import config\n\n\ndef prepare_held_out(*_):\n    pass",
            r"prepare_held_out\(\) that nothing calls; .*prepare_held_out=prepare_held_out\)",
        ),
        (
            "from lclm_jax.config import DataConfig\n\n\n"
            "def config():\n    return DataConfig(batch_rows=0)",
            r"line 5: DataConfig.batch_rows must be an integer, from 1 to 2147483647, got 0",
        ),
    ],
)
def test_a_config_that_raises_is_named_with_its_line(text, message, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as raised:
        load_experiment(str(file))
    assert str(file) in str(raised.value)


def test_a_file_with_only_a_config_is_an_experiment_without_data():
    experiment = load_experiment(str(SCRATCH), ["stages.scratch.steps=7"])
    assert experiment.config.stages[0].steps == 7
    assert experiment.recipe is None and experiment.prepare is None
    assert experiment.evaluation == EvaluationConfig()


def test_an_experiment_has_its_data_and_evaluation(tmp_path):
    experiment = load_experiment(str(TINY.with_name("small.py")), ["data.directory=elsewhere"])
    assert experiment.config.data.directory == "elsewhere"
    assert experiment.recipe is not None and experiment.recipe.name == "small"
    assert experiment.evaluation.question_source == "lookups"
    assert callable(experiment.prepare) and callable(experiment.prepare_held_out)


def test_a_recipe_is_read_from_a_recipe_or_an_experiment(tmp_path):
    assert load_recipe(str(RECIPE), ["max_document_chars=5"]).max_document_chars == 5
    file = tmp_path / "experiment.py"
    file.write_text("from configs.tiny import experiment", encoding="utf-8")
    assert load_recipe(str(file)).name == "tiny"
    file.write_text(
        "from configs.scratch_0p6b import config\n"
        "from lclm_jax.experiment import Experiment\n\n\n"
        "def experiment():\n    return Experiment(config())",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="its experiment has no recipe"):
        load_recipe(str(file))
    with pytest.raises(ConfigError, match=r"has no function recipe\(\)"):
        load_recipe(str(SCRATCH))


# --- What generation is asked ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model_config, params, tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, model_config, tokenizer, params)
    return directory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], "max-tokens: the value must be an integer, from 1"),
        (["--max-tokens", "-1"], "max-tokens: the value must be an integer, from 1"),
        (["--max-tokens", "100000"], "up to 32768 positions, got .* compress more"),
        (["--temperature", "nan"], "Sampling.temperature must be a finite number"),
        (["--temperature", "-1"], "Sampling.temperature must be"),
        (["--top-p", "0"], "Sampling.top_p must be a finite number, above 0 and at most 1|above 0"),
        (["--top-p", "1.5"], "Sampling.top_p must be"),
        (["--top-k", "-1"], "Sampling.top_k must be an integer"),
        (["--repetition-penalty", "0"], "Sampling.repetition_penalty must be"),
        (["--prompt", "\udcff"], "--prompt is not UTF-8 text"),
        (["--context", "latin"], "latin is not UTF-8 text: byte 0xe9 at 3"),
        (["--context", "empty"], "expected text to compress, got an empty string"),
    ],
)
def test_generation_names_a_bad_argument(
    arguments, message, checkpoint, tmp_path, command, capsys, monkeypatch
):
    import launch.generate

    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes("café".encode("latin-1"))
    Path("empty").touch()
    Path("text").write_text("Ada likes figs.", encoding="utf-8")
    given = {"--checkpoint": checkpoint, "--context": "text", "--prompt": "Who?"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    status = command(launch.generate, *[part for pair in given.items() for part in pair])
    written = capsys.readouterr().err
    assert status == 2 and "Traceback" not in written
    assert re.search(message, written.splitlines()[-1]), written


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "nan", '{"encoder": {}}', '{"encoder": 3}', "[" * 100_000, "\0"]
)
def test_a_broken_description_of_a_model_is_named(text, checkpoint, tmp_path, command, capsys):
    import launch.generate

    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "model.json").write_text(text, encoding="utf-8")
    (tmp_path / "text").write_text("Ada", encoding="utf-8")
    given = ["--checkpoint", broken, "--context", tmp_path / "text", "--prompt", "Who?"]
    assert_one_line(command(launch.generate, *given), capsys.readouterr(), text)


def test_a_file_of_json_must_hold_an_object(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff{}", encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {}
    (tmp_path / "a.json").write_text("3", encoding="utf-8")
    with pytest.raises(UserError, match=r"a.json: expected a JSON object, got int"):
        read_json(tmp_path / "a.json")


# --- What other libraries and the system raise ---


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device"),
        (PermissionError(13, "Permission denied", "a"), "a: Permission denied"),
        (OSError(30, "Read-only file system", "a"), "a: Read-only file system"),
        (OSError(18, "Invalid link", "a", None, "b"), "a -> b: Invalid link"),
        (MemoryError(), "this machine's memory is full"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), "lower data.batch_rows"),
        (RuntimeError("Unable to initialize backend 'tpu': none"), "set or unset JAX_PLATFORMS"),
        (ValueError("[tensorstore] No space left on device"), "the disk is full"),
        (
            ModuleNotFoundError("x", name="torch.nn"),
            "torch is not installed; pip install -e '.[parity]'",
        ),
        (ModuleNotFoundError("x", name="reasoning_gym"), "pip install -e '.[demo]'"),
        (ModuleNotFoundError("x", name="flax"), "pip install -e '.'"),
    ],
)  # fmt: skip
def test_an_error_of_the_machine_is_a_line_with_a_remedy(error, line):
    assert line in (describe(error) or "")
    assert "\n" not in (describe(error) or "")


@pytest.mark.parametrize(
    "error", [TypeError("x"), ValueError("x"), KeyError("x"), AssertionError()]
)
def test_a_defect_of_ours_keeps_its_stack_trace(error):
    assert describe(error) is None


def test_a_full_disk_ends_a_command_with_one_line(tmp_path, command, capsys, monkeypatch):
    import launch.samples

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(Path, "write_text", full)
    status = command(launch.samples, "--out", tmp_path / "samples")
    assert_one_line(status, capsys.readouterr(), "full disk")


# --- In a process of its own ---

ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


def start(*arguments, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        encoding="utf-8",
        **{"env": ENVIRONMENT} | settings,
    )


def test_an_interruption_of_the_imports_is_one_line():
    code = (
        "import os, signal, sys, time; sys.argv[0] = '-m'; import launch; "
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    )
    process = start("-c", code)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130


def test_a_package_that_is_missing_when_a_command_starts_is_named(tmp_path):
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError('x', name='torch')", encoding="utf-8"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = start("-m", "launch.bench", env=environment)
    _, written = process.communicate(timeout=120)
    expected = "error: the package torch is not installed; pip install -e '.[parity]'\n"
    assert (process.returncode, written) == (2, expected)


def test_a_reader_that_left_and_a_locale_of_few_letters_end_nothing_with_a_trace():
    code = (
        "import sys; from lclm_jax.cli import run\n"
        "def main():\n"
        "    sys.stdout.write('é → 漢\\n')\n"
        "    for _ in range(10 ** 6): sys.stdout.write('more\\n')\n"
        "run(main)"
    )
    process = start("-c", code, env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"})
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "\\xe9 \\u2192 \\u6f22\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == BROKEN_PIPE_STATUS


def test_devices_that_are_not_here_are_named(checkpoint):
    given = ["--checkpoint", checkpoint, "--context", TINY, "--prompt", "Who?"]
    process = start("-m", "launch.generate", *given, env=ENVIRONMENT | {"JAX_PLATFORMS": "tpu"})
    _, written = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in written
    assert written.splitlines()[-1].endswith("set or unset JAX_PLATFORMS"), written
