"""Compilation of programs: kept on disk for the next process, and with options for each chip."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lclm_jax.distributed.sharding import platform

# Environment variable that names the directory of compiled programs; "off" keeps none.
CACHE_VARIABLE = "LCLM_JAX_CACHE"

# A scan copies each layer's parameters before it multiplies by them. cuBLAS reads them where they
# lie, if XLA may fuse the slices, does not use Triton instead, and merges no products.
SERVING_OPTIONS = {
    "gpu": {
        "xla_gpu_enable_dynamic_slice_fusion": True,
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_dot_merger_threshold_mb": 0,
    }
}


def enable_cache(directory: str | Path | None = None):
    """Keep compiled programs in a directory, unless JAX already has one.

    By default that is `LCLM_JAX_CACHE`, or `~/.cache/lclm_jax/programs`. JAX's own setting,
    `JAX_COMPILATION_CACHE_DIR`, takes precedence.
    """
    # JAX defines its settings while it is imported, where no checker sees them.
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    default = Path.home() / ".cache/lclm_jax/programs"
    chosen = directory or os.environ.get(CACHE_VARIABLE) or default
    if str(chosen) == "off":
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(chosen).expanduser().resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class ServingProgram:
    """A jitted function that is compiled with the options of the chips in scope.

    It takes the settings of `jax.jit`, and is called, traced and lowered as its result is.
    """

    def __init__(self, function: Callable, **settings):
        self.function, self.settings = function, settings
        self.jitted: dict[str, Any] = {}

    def __call__(self, *inputs, **settings):
        return self._get()(*inputs, **settings)

    def trace(self, *inputs, **settings) -> jax.stages.Traced:
        return self._get().trace(*inputs, **settings)

    def lower(self, *inputs, **settings) -> jax.stages.Lowered:
        return self._get().lower(*inputs, **settings)

    def _get(self) -> Any:
        """Return the jitted function for the chips in scope."""
        name = platform()
        if name not in self.jitted:
            options = SERVING_OPTIONS.get(name)
            self.jitted[name] = jax.jit(self.function, compiler_options=options, **self.settings)
        return self.jitted[name]


def serving_program(**settings) -> Callable[[Callable], ServingProgram]:
    """Decorate a function as a `ServingProgram`."""
    return partial(ServingProgram, **settings)
