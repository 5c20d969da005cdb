"""Devices of a slice that is not here, for compilers that need none: libtpu for TPUs, jax's CUDA plugin for GPUs."""

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.experimental import topologies

from lclm_jax.costs.chips import Slice
from lclm_jax.errors import UserError

# Of libtpu: no lock file, no question to a metadata server, and no warnings that this machine is none of a slice.
TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}

# Of both Hopper cards, as NVIDIA's programming guide and data sheets have them (compute capability 9.0, SXM).
HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  runtime_version: "12.8.0"
  driver_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 84942979072),
    "h200": ("NVIDIA H200 141GB HBM3e", 151397597184),
}

TPU_HELP = (
    "TPUs need libtpu, with any jax: pip install -e '.[capacity]'; sides of a slice are 1, 2 or "
    "multiples of 4, up to 16x16 for v5e and v6e and 16x16x16 for v5p"
)
GPU_HELP = (
    "GPUs need jax's CUDA plugin, in an environment of its own: pip install -e '.[gpu]', in Python 3.12 for the kernels of "
    "attention, and JAX_PLATFORMS=cpu where there is no card"
)


class TopologyError(UserError):
    """A slice for which there is no compiler here, or that the compiler does not know."""


def slice_devices(where: Slice) -> list[Any]:
    """The devices of a slice: they can be put in a mesh and compiled for, and hold nothing. Raises TopologyError."""
    gpu = where.chip.kind == "gpu"
    try:
        devices = list(
            topologies.get_topology_desc(**(_gpus(where) if gpu else _tpus(where))).devices
        )
    except (
        RuntimeError
    ) as error:  # no compiler, one without topologies, or a slice it does not know
        raise TopologyError(
            f"cannot compile for {where}: {str(error).partition(chr(10))[0]}. {GPU_HELP if gpu else TPU_HELP}"
        ) from error
    if len(devices) != where.chips:  # cores, of a chip that has two
        raise TopologyError(
            f"expected {where.chips} devices of {where}, the compiler knows {len(devices)}"
        )
    return devices


def _tpus(where: Slice) -> dict[str, Any]:
    os.environ.update(TPU_ENVIRONMENT)
    per_host = tuple(min(2, side) for side in (*where.shape, 1)[:2])
    smaller = {} if per_host == (2, 2) else {"chips_per_host_bounds": (*per_host, 1)}  # than a host
    several = {"num_slices": where.count} if where.count > 1 else {}
    return {"platform": "tpu", "topology_name": where.name, **smaller, **several}


def _gpus(where: Slice) -> dict[str, Any]:
    name, memory = CARDS[where.chip.name]
    card = HOPPER.format(name=name, memory=memory, bandwidth=int(where.chip.memory_speed))
    nodes = f"1x{where.hosts}x{where.chips // where.hosts}"
    return {
        "platform": "cuda",
        "topology_name": where.chip.name,
        "topology": nodes,
        "target_config": card,
    }


def compiler(where: Slice) -> str:
    """Names and versions of what compiles for a slice, as figures of it should say."""
    gpu = where.chip.kind == "gpu"
    packages = ("jax-cuda13-pjrt", "jax-cuda12-pjrt", "tokamax") if gpu else ("libtpu",)
    found = [f"jax {jax.__version__}"]
    for package in packages:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)
