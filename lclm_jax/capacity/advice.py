"""Settings to change where a program does not fit its slice."""

from lclm_jax.capacity.measure import Figures
from lclm_jax.capacity.programs import Program

MIN_LOSS_CHUNK = 256  # positions; smaller chunks save next to nothing


def advise(program: Program, figures: Figures) -> list[str]:
    """Return what to change when a program does not fit, the cheapest change first."""
    if figures["fits"]:
        return []
    memory, arguments = figures["hbm_bytes"], figures["argument_bytes"]
    larger_slice = (
        f"a slice of more chips than {program.target.chips}, "
        f"or of chips with more memory than {memory / 2**30:.1f} GiB"
    )

    has_copies = program.job == "train" and figures["mesh"]["data"] > 1
    if arguments > memory and not has_copies:
        return [f"{larger_slice}: its arguments alone take {arguments / 2**30:.1f} GiB"]
    if program.job != "train":
        ratio = "--set model.compression.ratio=... : a larger ratio makes cache and prefill smaller"
        return [ratio, larger_slice]
    return [*_training_advice(program, figures), "--search: tries these settings", larger_slice]


def _training_advice(program: Program, figures: Figures) -> list[str]:
    run, mesh, advice = program.config.run, figures["mesh"], []
    if mesh["data"] > 1:
        settings = f"--set mesh.data=1 --set mesh.fsdp={mesh['data'] * mesh['fsdp']}"
        advice.append(f"{settings}: shards the model over all chips")
    if program.config.model.remat != "full":
        advice.append("--set model.remat=full: layers keep only their inputs")

    rows = figures["rows"] // (mesh["data"] * mesh["fsdp"])
    micro_batches = _smaller_micro_batches(run.micro_batches, rows, figures)
    if micro_batches > run.micro_batches:
        advice.append(f"--set run.micro_batches={micro_batches}: fewer rows in memory at a time")
    if rows <= micro_batches and mesh["fsdp"] > 1:
        advice.append(f"--set mesh.context={2 * mesh['context']}: each sequence on more chips")
    if run.loss_chunk > MIN_LOSS_CHUNK:
        advice.append(f"--set run.loss_chunk={run.loss_chunk // 2}: fewer logits at once")
    return advice


def _smaller_micro_batches(current: int, rows: int, figures: Figures) -> int:
    """Double the number of micro-batches until the peak may fit, while they divide the rows."""
    needed = current * figures["peak_bytes"] / figures["hbm_bytes"]
    count = current
    while rows % (2 * count) == 0 and count < needed:
        count *= 2
    return count
