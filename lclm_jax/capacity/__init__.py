"""Compile a program for a slice that need not be present; estimate memory and speed.

`python -m launch.capacity` is the command. Nothing is executed on an accelerator.
"""

from lclm_jax.capacity.advice import advise
from lclm_jax.capacity.measure import Figures, measure_program
from lclm_jax.capacity.programs import Program, with_serving_mesh
from lclm_jax.capacity.search import search_programs
from lclm_jax.capacity.topology import TopologyError

__all__ = [
    "Figures",
    "Program",
    "TopologyError",
    "advise",
    "measure_program",
    "search_programs",
    "with_serving_mesh",
]
