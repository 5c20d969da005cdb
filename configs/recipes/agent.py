"""Fine-tuning for an agent that skims latents and expands chunks (paper, section 7).

    python -m launch.prepare --recipe configs/recipes/agent.py --out DATA/agent \
        --input corpus=PATH --input instructions=PATH --input web=PATH

`corpus` is any text, or rows of text, question and answer; each becomes a trace of EXPAND calls
over numbered chunks. The paper does not give shares; those here are this project's choice.
"""

from lclm_jax.config import Recipe, Source, Stream


def recipe() -> Recipe:
    return Recipe(
        "agent",
        sources=(Source("corpus", "expand"), Source("instructions", "chat"), Source("web", "text")),
        streams=(
            Stream("sft", "corpus", 40.0),
            Stream("sft", "instructions", 45.0),
            Stream("reconstruction", "web", 15.0),
        ),
    )
