"""The parts of the benchmark, each in a process of its own."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from launch.bench.accelerator.peaks import machine
from launch.bench.accelerator.record import Record, read_results
from launch.bench.accelerator.report import report
from launch.bench.inference import agent, batches, first_token, long_text, questions, store
from launch.bench.inference.plan import Plan
from lclm_jax.compilation import enable_cache
from lclm_jax.errors import UserError
from lclm_jax.files.atomic import write_whole

MACHINE = "machine.json"
# A part's name is its section, or SECTION.DETAIL if a section has several.
PARTS: dict[str, Callable[[Plan, Record], None]] = {
    "first_token.16": partial(first_token.run_ratio, ratio=16),
    "first_token.8": partial(first_token.run_ratio, ratio=8),
    "first_token.4": partial(first_token.run_ratio, ratio=4),
    "first_token.only_16": first_token.run_only_ratio,
    "first_token.text": first_token.run_text,
    "questions": questions.run,
    "agent": agent.run,
    "batches": batches.run,
    "long_text.compress": long_text.run_compress,
    "long_text.store": long_text.run_store,
    "store": store.run,
}
SECTIONS = tuple(dict.fromkeys(name.partition(".")[0] for name in PARTS))


def choose_parts(sections: Sequence[str]) -> list[str]:
    """Return the names of the parts of these sections. Raises UserError for an unknown one."""
    if unknown := [name for name in sections if name not in (*SECTIONS, *PARTS)]:
        raise UserError(
            f"expected --sections of {', '.join(SECTIONS)}, got {', '.join(unknown)}; "
            "separate them with commas"
        )
    return [name for name in PARTS if {name, name.partition(".")[0]} & {*sections}]


def run_parts(plan: Plan, parts: Sequence[str]):
    """Measure every part that is not finished.

    A part's process is forked from one that has only imported modules, so that it starts quickly
    with memory of its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for name in parts:
        if read_results(plan.file(name))["finished"]:
            report(f"{name}: measured before", plan.started)
            continue
        report(f"{name}: started", plan.started)
        process = context.Process(target=measure_part, args=(plan, name))
        process.start()
        process.join()
        if process.exitcode:
            note_end(plan, name, process.exitcode)


def measure_part(plan: Plan, name: str):
    """Take the measurements of a part; an exception outside them is recorded as the part's."""
    enable_cache(plan.directory / "programs")
    write_whole(plan.directory / MACHINE, json.dumps(asdict(machine()), indent=1))
    record = Record(plan.file(name), float("inf"), plan.started)
    record.attempt("the part itself", lambda: PARTS[name](plan, record))
    record.finish()


def note_end(plan: Plan, name: str, status: int):
    """Write into a part's file that its process was killed."""
    text = f"the process ended with status {status}"
    report(f"{name}: {text}", plan.started)
    results = read_results(plan.file(name))
    results["errors"]["the part itself"] = text
    write_whole(plan.file(name), json.dumps(results, indent=1))
