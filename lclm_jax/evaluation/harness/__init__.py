"""EleutherAI's lm-evaluation-harness: its tasks, answered in views of their contexts.

Needs the extra `evaluation`. Tasks, prompts and metrics are the harness'; the split of a prompt
into passages and the rest, and the views, are ours.
"""
