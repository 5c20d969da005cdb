"""The harness' own command, with our models under the name `lclm`.

python -m lclm_jax.evaluation.harness run --model lclm --tasks gsm8k \
    --model_args checkpoint=runs/lclm,view=latents,ratio=16
"""

from lm_eval.__main__ import cli_evaluate

import lclm_jax.evaluation.harness.adapter  # registers the model  # noqa: F401
from lclm_jax.cli import run

if __name__ == "__main__":
    run(cli_evaluate)
