"""Chats to tokens, by chat templates, with the role of every token."""
