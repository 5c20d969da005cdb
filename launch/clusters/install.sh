#!/usr/bin/env bash
# Makes the environment .venv of the checkout it lies in, for the hardware it is given: tpu or gpu. uv brings its own Python, as
# images of TPU VMs have an older one than this project needs.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --editable ".[data,${1:?tpu or gpu}]"
