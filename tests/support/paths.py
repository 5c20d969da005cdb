"""Places in the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"  # outputs of the PyTorch original
MODELS = ROOT / "tests" / "data" / "models"  # small trained models, in the published layout
