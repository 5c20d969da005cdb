"""A tiny model trained while everything goes wrong, compared with the same run left alone: python -m launch.soak RUN_DIR"""
