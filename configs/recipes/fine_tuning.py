"""The paper's mix for supervised fine-tuning (section 4.1, appendix C).

    python -m launch.prepare --recipe configs/recipes/fine_tuning.py --out DATA/fine_tuning \
        --input reasoning=PATH --input long_tasks=PATH --input instructions=PATH \
        --input web=PATH --input code=PATH --input long=PATH --input math=PATH --input latex=PATH

Shares are percentages of the trained tokens. `long_tasks` are chats over long contexts: summaries
of repositories and documents, code for a repository, questions over retrieved passages,
instructions about code. The paper gives the total share of reconstruction; its split over the five
kinds of text is this project's choice.
"""

from lclm_jax.config import Recipe, Source, Stream

STREAMS = (
    Stream("reasoning", "reasoning", 17.88),
    Stream("sft", "long_tasks", 49.16),
    Stream("sft", "instructions", 20.91),
    Stream("reconstruction", "web", 4.05),
    Stream("reconstruction", "code", 3.50),
    Stream("reconstruction", "long", 1.00),
    Stream("reconstruction", "math", 2.00),
    Stream("reconstruction", "latex", 1.50),
)


def recipe() -> Recipe:
    return Recipe(
        "fine_tuning",
        sources=(
            Source("reasoning", "chat"),
            Source("long_tasks", "chat"),
            Source("instructions", "chat"),
            Source("web", "text"),
            Source("code", "code"),
            Source("long", "long"),
            Source("math", "math"),
            Source("latex", "latex"),
        ),
        streams=STREAMS,
    )
