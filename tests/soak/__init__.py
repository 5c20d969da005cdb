"""A tiny model trained under faults and compared with the same run undisturbed.

Run by python -m tests.soak RUN_DIR.
"""
