"""Compiled programs kept on disk, so that a second process compiles nothing."""

import os
from pathlib import Path

import jax

DIRECTORY = "LCLM_JAX_CACHE"  # environment variable that names the directory; "off" keeps nothing


def enable_cache(directory: str | Path | None = None):
    """Keeps compiled programs in a directory, unless JAX has been given one.

    By default that is `LCLM_JAX_CACHE`, or `~/.cache/lclm_jax/programs`. JAX's own setting,
    `JAX_COMPILATION_CACHE_DIR`, comes first.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    chosen = directory or os.environ.get(DIRECTORY) or Path.home() / ".cache/lclm_jax/programs"
    if str(chosen) == "off":
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(chosen).expanduser().resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
