"""The paper's mix for continual pre-training (section 4.1, appendix C).

    python -m launch.prepare --recipe configs/recipes/pretraining.py --out DATA/pretraining \
        --input web=PATH --input code=PATH --input reasoning=PATH --input long=PATH \
        --input math=PATH --input latex=PATH --input instructions=PATH

Shares are percentages of the trained tokens. The paper gives the total share of reconstruction; its
split over the five kinds of text is this project's choice. `web`, `code`, `long`, `math` and
`latex` are documents, `reasoning` and `instructions` chats.
"""

from lclm_jax.config import Recipe, Source, Stream

STREAMS = (
    Stream("interleaved", "web", 20.37),
    Stream("interleaved", "code", 16.90),
    Stream("reasoning", "reasoning", 17.17),
    Stream("interleaved", "long", 2.84),
    Stream("sft", "instructions", 25.49),
    Stream("reconstruction", "web", 6.23),
    Stream("reconstruction", "code", 5.00),
    Stream("reconstruction", "long", 1.00),
    Stream("reconstruction", "math", 3.00),
    Stream("reconstruction", "latex", 2.00),
)


def recipe() -> Recipe:
    return Recipe(
        "pretraining",
        sources=(
            Source("web", "text"),
            Source("code", "code"),
            Source("reasoning", "chat"),
            Source("long", "long"),
            Source("math", "math"),
            Source("latex", "latex"),
            Source("instructions", "chat"),
        ),
        streams=STREAMS,
    )
