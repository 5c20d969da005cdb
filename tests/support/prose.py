"""English and code that every machine has."""

import dataclasses
import os
from pathlib import Path

PROSE = Path(os.__file__).read_text(encoding="utf-8") + Path(dataclasses.__file__).read_text(
    encoding="utf-8"
)
