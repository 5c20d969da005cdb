"""Prompts about sessions of a conversation, which LongMemEval and LoCoMo share.

Each session is a passage under a plain heading with its date. A session is what an agent compresses
once, when it ends; its latents do not depend on the sessions before it, so all questions and all
later prompts reuse them. Dates stay text because questions are about them. The price is about 20
positions for each session, and a `first` view that keeps the beginning of every session.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lclm_jax.evaluation.questions import Passage

NOT_MENTIONED = "not mentioned"  # the answer that prompts ask for where a history has none


@dataclass(frozen=True)
class Session:
    """A session of a conversation: its date as published, and its turns as text."""

    date: str
    text: str


def show_sessions(sessions: Sequence[Session]) -> list[str | Passage]:
    """Return the beginning of a prompt: headings and passages of all sessions."""
    parts: list[str | Passage] = ["These are earlier conversations, the oldest first.\n\n"]
    for i, session in enumerate(sessions):
        body = Passage(session.text) if session.text.strip() else "(no messages)"
        parts += [f"Conversation {i + 1}, {session.date}:\n", body, "\n\n"]
    return parts


def ask_briefly(question: str) -> str:
    """Return the end of a prompt: a question that asks for an answer of a few words."""
    return (
        f"{question}\n\nAnswer in as few words as you can, and without an explanation. "
        f'If the conversations do not say it, answer "{NOT_MENTIONED}".'
    )
