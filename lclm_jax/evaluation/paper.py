"""Results of the paper, to stand beside one's own.

Source: "End-to-End Context Compression at Scale", arXiv 2606.09659v1. Decoder
Qwen3-4B-Instruct-2507, encoder Qwen3-Embedding-0.6B. The paper gives no standard errors.
"""

from collections.abc import Sequence

SCORES_SOURCE = "arXiv 2606.09659v1, Table 6"
FIRST_TOKENS_SOURCE = "arXiv 2606.09659v1, read off a figure, means of 30 rounds after 20 warm-ups"
DEVICE = "H200"
VIEWS = ("text", "latents 16x", "latents 8x", "latents 4x")
K = 1024

FAMILIES_OF_ONE_TASK = ("longhealth", "gsm8k")  # the scores of others are means over tasks

# Scores in percent, in the order of VIEWS: {family: {length in tokens, or None: scores}}.
_PERCENTS: dict[str, dict[int | None, tuple[float, ...]]] = {
    "ruler": {
        4 * K: (94.41, 75.06, 85.42, 91.76),
        8 * K: (93.58, 70.23, 84.48, 91.03),
        16 * K: (93.74, 65.91, 82.47, 89.96),
    },
    "longbench_en": {None: (45.21, 39.08, 42.23, 46.04)},
    "longbench_cn": {None: (46.63, 31.74, 34.61, 40.92)},
    "longhealth": {None: (75.75, 67.50, 71.75, 76.25)},
    "gsm8k": {None: (93.25, 81.05, 87.26, 91.05)},
}

# Seconds to the first token and peak bytes: {view: {length in tokens: (seconds, bytes)}}.
FIRST_TOKENS: dict[str, dict[int, tuple[float, float]]] = {
    "latents 16x": {
        4 * K: (0.063, 9.2e9),
        64 * K: (0.478, 17.4e9),
        128 * K: (0.97, 26.1e9),
        512 * K: (4.49, 26.2e9),
        1024 * K: (10.6, 36.8e9),
    },
    "text": {64 * K: (4.47, 35.4e9), 256 * K: (61.4, 119e9)},
}


CHINESE_TASKS = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")


def paper_scores(family: str, length: int | None, tasks: Sequence[str] = ()) -> dict[str, float]:
    """Return the paper's scores from 0 to 1 by the label of a view; none where it has none.

    The paper's means of LongBench are those of its English and of its Chinese tasks, so a mean of
    tasks in both languages has no counterpart.
    """
    if family == "longbench":
        languages = {"cn" if task.endswith(CHINESE_TASKS) else "en" for task in tasks}
        family = f"longbench_{languages.pop()}" if len(languages) == 1 else family
    percents = _PERCENTS.get(family, {}).get(length, ())
    return {view: value / 100 for view, value in zip(VIEWS, percents, strict=False)}


def paper_lengths(family: str) -> list[int]:
    """Return the lengths at which the paper gives scores of a family, in tokens."""
    return [length for length in _PERCENTS.get(family, {}) if length is not None]
