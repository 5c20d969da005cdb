"""Made-up results of an evaluation: nothing here was measured."""

import zlib

import numpy as np

from lclm_jax.evaluation.results import Results
from lclm_jax.evaluation.samples import Sample

COMMAND = "python -m launch.evaluate --checkpoint runs/none --tasks ruler,longhealth"
RATIOS = (4, 8, 16)
VIEWS = (
    "text",
    "nothing",
    *(f"{name} {ratio}x" for name in ("latents", "first", "random") for ratio in RATIOS),
    "expand 16x",
)
RULER = ("niah_single_1", "niah_multikey_2", "ruler_vt")
LENGTHS = (4096, 8192, 16384)
VERSIONS = {"lclm_jax": "0.1.0+g1a2b3c4d", "jax": "0.10.2", "python": "3.11.9", "device": "cpu"}


def make_samples(scores, view="text", task="ruler_vt", **tags) -> list[Sample]:
    """Return samples with these scores; a tag that is a list has a value for each."""
    return [
        Sample(
            task=task,
            number=number,
            view=view,
            answer=f"answer {number} from {view}",
            references=["right"],
            scores={"score": float(score)},
            positions=100,
            tags={
                name: value[number] if isinstance(value, list) else value
                for name, value in tags.items()
            },
            prompt=f"prompt {number}",
        )
        for number, score in enumerate(scores)
    ]


def make_results(count: int = 30, views=VIEWS, efficiency: bool = True) -> Results:
    """Return results of three families of tasks, of which one has lengths."""
    samples = []
    for view in views:
        for length in LENGTHS:
            for task in RULER:
                tags = {"family": "ruler", "length": length}
                name = f"{task}@{length}"
                samples += make_samples(_draw(view, name, length, count), view, name, **tags)
        tags = {"family": "longhealth", "cluster": [f"patient {n // 5}" for n in range(count)]}
        samples += make_samples(
            _draw(view, "longhealth5", 8192, count), view, "longhealth5", **tags
        )
        samples += make_samples(_draw(view, "gsm8k", 512, count), view, "gsm8k", family="gsm8k")
    entries = make_efficiency(views) if efficiency else []
    return Results({"command": COMMAND, "limit": count}, VERSIONS, samples, entries)


def make_efficiency(views=VIEWS) -> list[dict]:
    """Return times and memory of every view, with estimates of a compiler for two of them."""
    entries = []
    for view in views:
        for length in LENGTHS:
            read = length / _ratio(view) if view != "nothing" else 64
            encoded = length * 2e-6 if view.startswith(("latents", "expand")) else 0
            entry = {
                "view": view,
                "length": length,
                "first_token_seconds": 0.01 + encoded + read * 2e-5,
                "peak_bytes": 8e9 + read * 4e5,
                "device": "cpu",
                "source": "measured",
            }
            entries.append(entry)
            if view in ("text", "latents 16x"):
                other = {"device": "v5p:2x2x1", "source": "compiler"}
                seconds = entry["first_token_seconds"] / 5
                entries.append({**entry, **other, "first_token_seconds": seconds})
    return entries


def _draw(view: str, task: str, length: int, count: int) -> np.ndarray:
    """Return right and wrong answers that depend on the arguments only."""
    loss = {"text": 0.05, "nothing": 0.9, "latents": 0.02, "expand": 0.01, "random": 0.058}
    name = view.partition(" ")[0]
    chance = 1 - loss.get(name, 0.05) * (1 if name in ("text", "nothing") else _ratio(view))
    random = np.random.default_rng(zlib.crc32(task.encode()))
    difficulty = random.random(count) * (0.8 + length / 60_000)
    return (difficulty < max(chance, 0.05)).astype(float)


def _ratio(view: str) -> int:
    _, _, ratio = view.partition(" ")
    return int(ratio.removesuffix("x")) if ratio else 1
