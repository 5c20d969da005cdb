"""Measure seconds to the first token and peak memory, by length of the context and view.

    python -m launch.efficiency --checkpoint CKPT --lengths 4096,65536 --out DIR
The rounds that are not in DIR/efficiency.jsonl are measured on the devices here: on an accelerator
as in the paper, on a CPU fewer of them. --slice adds estimates for chips that are not here, with
the compiler of launch.capacity. DIR may have answers and measurements of one model only.
"""

from lclm_jax.capacity.efficiency import estimate_efficiency
from lclm_jax.cli import (
    add_checkpoint_argument,
    listed,
    make_parser,
    path,
    run,
    setting,
    show_table,
)
from lclm_jax.config.settings import Count, Size
from lclm_jax.costs.chips import parse_slice
from lclm_jax.evaluation.efficiency import EfficiencySettings, measure_efficiency
from lclm_jax.evaluation.identity import check_model
from lclm_jax.evaluation.results import EFFICIENCY_FILE
from lclm_jax.evaluation.views import make_views
from lclm_jax.files.directories import locked
from lclm_jax.inference.language_model import load
from lclm_jax.progress import track
from lclm_jax.reports.efficiency import tabulate_first_tokens

PROTOCOL = {"warm_ups": Count, "repeats": Size, "windows_at_once": Size}


def main():
    parser = make_parser(__doc__)
    add_checkpoint_argument(parser, "a training run or a converted checkpoint")
    parser.add_argument(
        "--lengths", type=listed(Size), required=True, help="of contexts, in tokens"
    )
    parser.add_argument("--ratios", type=listed(Size), help="(default: all of the model)")
    parser.add_argument("--out", type=path, required=True, metavar="DIR")
    parser.add_argument("--slice", type=parse_slice, help="CHIP:SHAPE, as v6e:1x1 or h100:1")
    for name, hint in PROTOCOL.items():  # by default those of EfficiencySettings
        parser.add_argument(f"--{name.replace('_', '-')}", type=setting(hint))
    arguments = parser.parse_args()

    model = load(arguments.checkpoint)
    ratios = list(arguments.ratios or model.config.compression.all_ratios)
    views = make_views(["latents", "text"], ratios, model)
    protocol = {name: getattr(arguments, name) for name in PROTOCOL}
    settings = EfficiencySettings.for_model(model, arguments.lengths, views, **protocol)
    with locked(arguments.out):
        check_model(arguments.out, model)
        file = arguments.out / EFFICIENCY_FILE
        rows = measure_efficiency(model, settings, file, track)
        if arguments.slice:
            rows += estimate_efficiency(model.config, settings, arguments.slice, file, track)
    show_table(tabulate_first_tokens(rows))


if __name__ == "__main__":
    run(main)
