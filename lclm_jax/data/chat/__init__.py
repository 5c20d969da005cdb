"""Conversion of chats into tokens by chat templates, with the role of every token."""

from lclm_jax.data.chat.chat import (
    CHATML,
    PromptEnd,
    build_chat_record,
    choose_template,
    tokenize_chat,
    tokenize_normalized_chat,
)
from lclm_jax.data.chat.context_tags import parse_context_tags, split_context_tags
from lclm_jax.data.chat.messages import Message, Part, Reasoning, split_reasoning
from lclm_jax.data.chat.stop_tokens import find_stop_ids, find_turn_end_id

__all__ = [
    "CHATML",
    "Message",
    "Part",
    "PromptEnd",
    "Reasoning",
    "build_chat_record",
    "choose_template",
    "find_stop_ids",
    "find_turn_end_id",
    "parse_context_tags",
    "split_context_tags",
    "split_reasoning",
    "tokenize_chat",
    "tokenize_normalized_chat",
]
