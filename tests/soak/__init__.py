"""A tiny model trained while everything goes wrong, compared with the same run left alone: python -m tests.soak RUN_DIR"""
