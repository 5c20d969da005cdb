"""Writes tasks of likelihoods, from docstrings of Python's standard library, for the harness.

    python -m convert.verify.stdlib_tasks DIR

They need no network: `stdlib_choices` asks which text follows the first sentence of a docstring,
among those of three others; `stdlib_texts` scores whole docstrings. Pass DIR as `--include`.
"""

import ast
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lclm_jax.cli import make_parser, path, run
from lclm_jax.files import new_directory, write_whole

ROWS, CHOICES = 28, 4
MIN_FIRST, MAX_FIRST = 30, 300  # characters of the first paragraph of a docstring
MIN_REST, MAX_REST = 60, 100  # characters of what follows it
TASK = """task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
CHOICES_TASK = """output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXTS_TASK = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""
Row = Mapping[str, Any]


def main():
    parser = make_parser(__doc__)
    parser.add_argument("directory", type=path)
    directory = parser.parse_args().directory
    paragraphs = list(read_docstrings())
    random.Random(0).shuffle(paragraphs)
    texts = [{"text": f"{first} {rest}"} for _, first, rest in paragraphs[-ROWS:]]
    with new_directory(directory) as new:
        write_task(new, directory, "stdlib_choices", CHOICES_TASK, list(make_rows(paragraphs)))
        write_task(new, directory, "stdlib_texts", TEXTS_TASK, texts)


def read_docstrings() -> Iterator[tuple[str, str, str]]:
    """Yield the name of each function or class, the first paragraph of its docstring, and more."""
    for file in sorted(Path(ast.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                first, rest = " ".join(first.split()), " ".join(rest.split())[:MAX_REST]
                if MIN_FIRST < len(first) < MAX_FIRST and len(rest) > MIN_REST:
                    yield f"{file.stem}.{node.name}", first, rest


def make_rows(paragraphs: Sequence[tuple[str, str, str]]) -> Iterator[Row]:
    """Yield rows that ask for the rest of a docstring among those of others."""
    for number in range(ROWS):
        group = paragraphs[number * CHOICES : (number + 1) * CHOICES]
        gold = number % CHOICES
        name, first, _ = group[gold]
        choices = [rest for _, _, rest in group]
        yield {"text": f"About {name} in Python: {first}", "choices": choices, "gold": gold}


def write_task(new: Path, directory: Path, name: str, settings: str, rows: Sequence[Row]):
    """Write a task and its rows to `new`, which becomes `directory`."""
    write_whole(new / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    file = json.dumps(str(directory.absolute() / f"{name}.jsonl"))
    write_whole(new / f"{name}.yaml", TASK.format(name=name, file=file) + settings)


if __name__ == "__main__":
    run(main)
