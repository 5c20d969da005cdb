"""An agent that reads documents as latents and expands the chunks whose words it needs."""

from lclm_jax.inference.agent.agent import DEFAULT_BUDGET, Agent, AgentAnswer, Round, describe
from lclm_jax.inference.agent.chunks import Chunk
from lclm_jax.inference.agent.forms import FORMS

__all__ = ["DEFAULT_BUDGET", "FORMS", "Agent", "AgentAnswer", "Chunk", "Round", "describe"]
