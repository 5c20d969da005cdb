"""Chats within a budget of positions: older messages are kept as latents."""

from lclm_jax.inference.chat.chat import Chat, Usage
from lclm_jax.inference.chat.policy import Level, MessageSize, Policy, compress_oldest

__all__ = ["Chat", "Level", "MessageSize", "Policy", "Usage", "compress_oldest"]
