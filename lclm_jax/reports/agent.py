"""Page of an agent's answer: what it expanded, why, and what it read in each round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.files.atomic import write_whole
from lclm_jax.reports.pages import render


def write_agent_page(answer: Mapping[str, Any], path: str | Path):
    """Write the page of an answer, given as `AgentAnswer.to_dict`."""
    write_whole(path, render("agent.html.j2", answer=answer))
