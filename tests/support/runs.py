"""Directories of made-up runs, with the files that training and evaluation leave."""

import json
import math
from pathlib import Path

from lclm_jax.reports.run import write_report

SCRIPT = "<script>alert('x')</script>"
TOWER = {
    "vocab": 512,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "mlp": 64,
}
CONFIG = {
    "model": {
        "encoder": TOWER,
        "decoder": TOWER,
        "compression": {"ratio": 4, "window": 16, "pooling": "mean", "overlap": 0},
    },
    "stages": [{"name": "adapter", "steps": 40}, {"name": "all", "steps": 60}],
    "data": {"batch_rows": 8, "row_positions": 128},
}


def line(
    stage: str, step: int, steps: int, loss: float, streams=("reconstruction/docs", "sft/tasks")
) -> dict:
    each = {name: {"loss": loss, "accuracy": 1 / (1 + loss), "tokens": 500} for name in streams}
    head = {"stage": stage, "step": step, "steps": steps, "loss": loss, "trained_tokens": 1000.0}
    return head | {"positions_per_second": 1024.0, "streams": each}


LOG = [
    line("adapter", 20, 40, 6.0),
    line("adapter", 40, 40, 5.55),
    line("adapter", 40, 40, 5.0),  # repeated after an interruption
    line("all", 60, 60, 2.22, ("reconstruction/docs",)),
]


def share(value: float, half: float = 0.02) -> dict:
    return {
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half),
        "count": 1000,
    }


def views(latents: float, text: float, nothing: float, half: float = 0.02) -> dict:
    values = {"latents": latents, "text": text, "nothing": nothing}
    return {
        view: {"accuracy": share(value, half), "loss": 3 * (1 - value)}
        for view, value in values.items()
    }


def cost(tokens: int) -> dict:
    plain = {
        "positions": tokens,
        "cache_bytes": 512 * tokens,
        "encoder_flops": 0.0,
        "adapter_flops": 0.0,
    }
    compressed = {
        "positions": tokens // 4 + 2,
        "cache_bytes": 128 * tokens,
        "encoder_flops": 2e5 * tokens,
        "adapter_flops": 1e4 * tokens,
    }
    return {
        "tokens": tokens,
        "plain": plain | {"decoder_flops": 1e6 * tokens},
        "compressed": compressed | {"adapter_flops": 1e4 * tokens, "decoder_flops": 2.5e5 * tokens},
    }


EVALUATION = {
    "step": 100,
    "seconds": 480.0,
    "parameters": {"encoder": 1_000_000, "adapter": 20_000, "decoder": 1_500_000},
    "ratio": 4,
    "window": 16,
    "reconstruction": [
        {"source": "docs", "lengths": [8, 16], "passages": 50} | views(0.613, 0.9, 0.2),
        {"source": "docs", "lengths": [16, 32], "passages": 50} | views(0.4, 0.9, 0.2),
    ],
    "continuation": [
        {"source": "code", "documents": 30, "latents": 3.2, "text": 3.0, "nothing": 3.5}
    ],
    "questions": {
        "questions": 128,
        "latents": share(0.055),
        "text": share(0.75),
        "nothing": share(0.06),
    },
    "cost": {
        "this model": [cost(n) for n in (64, 256, 1024)],
        "published 0.6B + 4B, ratio 16": [cost(n) for n in (1024, 16384, 262144)],
    },
    "samples": {
        "reconstruction": [
            {"source": "docs", "passage": f"one two {SCRIPT}", "written": f"one zwei {SCRIPT}"}
        ],
        "continuation": [{"source": "docs", "opening": SCRIPT, "truth": SCRIPT, "written": SCRIPT}],
        "questions": [
            {
                "context": SCRIPT,
                "question": "Who?",
                "answer": "Ben",
                "from_latents": "Cy",
                "from_text": "Ben",
                "from_nothing": SCRIPT,
            }
        ],
    },
}
ROUND_TRIP = {
    "directory": "hf/100",
    "tensors": 77,
    "bytes": 12_300_000,
    "largest_logit_difference": 0.0,
    "identical": True,
}


def write_lines(path: Path, lines: list[dict]):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")


def write_run(directory: Path) -> Path:
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    write_lines(directory / "log.jsonl", LOG)
    (directory / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (directory / "round_trip.json").write_text(json.dumps(ROUND_TRIP), encoding="utf-8")
    return directory


def read(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


VALIDATION_LOSSES = [(20, 6.0), (40, 5.5), (40, 5.0)]  # step 40 was repeated after an interruption


def validation(
    stage: str, step: int, latents: float, text: float = 4.0, nothing: float = 8.0
) -> dict:
    losses = {"latents": latents, "text": text, "nothing": nothing}
    each = {
        view: {"loss": loss, "accuracy": loss / 100, "tokens": 4096}
        for view, loss in losses.items()
    }
    return {
        "stage": stage,
        "step": step,
        "time": 1000.0 + step,
        "streams": {"reconstruction/docs": each, "sft/tasks": each},
    }


def event(kind: str, time: float, step: int = 0, stage: str = "adapter", **more) -> dict:
    return {"time": time, "event": kind, "stage": stage, "step": step, **more}


EVENTS = [
    event("started", 900.0),
    event("compiled", 910.0, 1, seconds=9.87),
    event(
        "skipped",
        1000.0,
        7,
        loss=math.nan,
        gradient_norm=2.5,
        records=[f"docs/{n}" for n in range(40)],
    ),
    event("damaged", 4630.0, 40, checkpoint="40", reason=f"params: {SCRIPT}"),
    event("changed", 4631.0, 20, settings={"data.batch_rows": [8, 16]}),
    event("resumed", 4640.0, 20, **{"from": 20}),
    event("skipped", 4650.0, 7, stage="all", loss=1.5, gradient_norm=math.inf, records=["code/1"]),
]


def full_line(stage: str, step: int, steps: int, time: float, **more) -> dict:
    """Return a line of the log with everything that is measured."""
    parts = {"encoder": 0.5, "adapter": 0.25}
    figures = {
        f"{name}/{part}": value
        for name in ("gradient_norm", "rate")
        for part, value in parts.items()
    }
    figures |= {f"update_norm/{part}": 0.02 for part in parts} | {
        f"parameter_norm/{part}": 10.0 for part in parts
    }
    speed = {"step_seconds": 1.5, "flops_per_second": 1.8e14, "mfu": 0.413, "waiting": 0.004}
    latents = {
        "context_tokens": 4000,
        "latents": 1000,
        "fill": 0.97,
        "window_fill": 0.985,
        "gradient_norm": 0.6,
        "skipped": 0,
    }
    return line(stage, step, steps, 5.0) | figures | speed | latents | {"time": time} | more


FULL_LOG = [
    full_line("adapter", 20, 40, 1010.0),
    full_line("adapter", 40, 40, 1030.0),
    full_line("all", 30, 60, 4700.0, skipped=1),
]
