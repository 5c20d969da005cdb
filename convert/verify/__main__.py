"""Command `python -m convert.verify`, which is `convert.verify.round_trip`."""

from convert.verify.round_trip import main
from lclm_jax.cli import run

if __name__ == "__main__":
    run(main)
