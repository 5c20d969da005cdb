"""Train the cells of a sweep: any number of workers share one list, without a coordinator.

    python -m launch.ablate --sweep configs/ablations/small_search.py --out runs/search
    python -m launch.ablate --sweep FILE --out DIR --dry-run --slice v5p:2x2x1  # what it costs
    python -m launch.ablate --sweep FILE --out DIR --status
    python -m launch.ablate --sweep FILE --out DIR --report

DIR is one that all workers see. Start one worker on every slice; each takes the next cell that
nobody trains. A worker that is killed gives its cell back within a minute, and starting the
command again goes on.
"""
