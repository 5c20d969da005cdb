"""Input files of any format, found in units and read as rows."""

from lclm_jax.data.inputs.files import InputRow, Rejection, read_unit, unread_files
from lclm_jax.data.inputs.units import Unit, find_units

__all__ = ["InputRow", "Rejection", "Unit", "find_units", "read_unit", "unread_files"]
