"""Train the cells of a sweep: any number of workers share one list, without a coordinator.

    python -m launch.ablate --sweep configs/ablations/paper_scratch.py --out runs/scratch
    python -m launch.ablate --sweep FILE --dry-run --slice v5p:2x2x1     # sizes, FLOPs, chip-hours
    python -m launch.ablate --sweep FILE --out DIR --status    # live in a terminal
    python -m launch.ablate --sweep FILE --out DIR --report    # DIR/index.html

DIR must exist, on a file system that all workers share. Start a worker on each host of every slice;
it takes the next cell that nobody trains. If a worker dies, its cell is free again within a minute;
run the same command to resume. To try a failed cell again, delete its directory. Exit status 0
where all cells are finished, 3 where some failed.
"""

import logging
import sys

from lclm_jax.cli import make_parser, path, run, setting, show_live, show_table
from lclm_jax.config.settings import Size
from lclm_jax.costs.chips import parse_slice
from lclm_jax.progress import track
from lclm_jax.reports.sweep import plan_table, states_table, status_tables
from lclm_jax.reports.sweep_page import write_page
from lclm_jax.sweeps.cells import load_sweep
from lclm_jax.sweeps.plan import plan_sweep
from lclm_jax.sweeps.walk import run_job, walk
from lclm_jax.sweeps.workers import MAX_ATTEMPTS

FAILED_STATUS = 3


def main():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--sweep", required=True, metavar="FILE", help="a Python file with a function sweep()")
    add("--out", type=path, metavar="DIR", help="directory of the sweep, which all workers see")
    add("--dry-run", action="store_true", help="print the cost of every cell, and train nothing")
    add("--slice", type=parse_slice, help="with --dry-run: a slice such as v5p:2x2x1")
    add("--status", action="store_true", help="show the status of every cell")
    add("--report", action="store_true", help="write what the finished cells show")
    add("--attempts", type=setting(Size), default=MAX_ATTEMPTS, help="(default: %(default)s)")
    add("--job", help="train one cell here and now, as a worker's child does")
    arguments = parser.parse_args()

    sweep = load_sweep(arguments.sweep)
    if arguments.dry_run:
        show_table(plan_table(plan_sweep(sweep, arguments.slice, progress=track)))
        return
    if arguments.out is None:
        parser.error("expected --out DIR, the directory of the sweep")
    if arguments.status:
        show_live(status_tables(sweep, arguments.out))
    elif arguments.report:
        logging.info("the page is %s", write_page(arguments.sweep, sweep, arguments.out))
    elif arguments.job:
        run_job(sweep, arguments.out, arguments.job)
    else:
        command = [sys.executable, "-m", "launch.ablate", "--sweep", arguments.sweep]
        command += ["--out", str(arguments.out), "--job"]
        states = walk(sweep, arguments.out, command, arguments.attempts)
        show_table(states_table(states))
        if any(state.status == "failed" for state in states):
            sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    run(main, cache=False)
