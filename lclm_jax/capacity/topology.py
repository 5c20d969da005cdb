"""Devices of a slice that is not present, for compilers that need no hardware.

libtpu compiles for TPUs, jax's CUDA plugin for GPUs.
"""

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.experimental import topologies

from lclm_jax.costs.chips import Slice
from lclm_jax.errors import UserError

# Keep libtpu from taking its lock file, querying a metadata server, and warning that this machine
# is not part of a slice.
TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}

# Both Hopper cards, from NVIDIA's programming guide and data sheets (compute capability 9.0, SXM).
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
# Name and device memory in bytes, by chip.
HOPPER_CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 84942979072),
    "h200": ("NVIDIA H200 141GB HBM3e", 151397597184),
}

TPU_HELP = (
    "TPUs need libtpu, with any jax: pip install -e '.[capacity]'; sides of a slice are 1, 2 or "
    "multiples of 4, up to 16x16 for v5e and v6e and 16x16x16 for v5p"
)
GPU_HELP = (
    "GPUs need jax's CUDA plugin, in an environment of its own: pip install -e '.[gpu]', with "
    "Python 3.12 for attention kernels, and JAX_PLATFORMS=cpu on a machine without a GPU"
)


class TopologyError(UserError):
    """A slice that no compiler here supports, or a program it compiled that cannot be read."""


def slice_devices(target: Slice) -> list[Any]:
    """Return the devices of a slice, for a mesh to compile for; they cannot hold arrays.

    Raises TopologyError where the compiler is missing or does not know the slice.
    """
    gpu = target.chip.kind == "gpu"
    options = _gpu_options(target) if gpu else _tpu_options(target)
    try:
        devices = list(topologies.get_topology_desc(**options).devices)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        help_text = GPU_HELP if gpu else TPU_HELP
        raise TopologyError(f"cannot compile for {target}: {reason}. {help_text}") from error

    # A chip with two cores may count as two devices.
    if len(devices) != target.chips:
        raise TopologyError(
            f"expected {target.chips} devices of {target}, the compiler has {len(devices)}"
        )
    return devices


def _tpu_options(target: Slice) -> dict[str, Any]:
    os.environ.update(TPU_ENVIRONMENT)
    options: dict[str, Any] = {"platform": "tpu", "topology_name": target.name}
    chips_per_host = tuple(min(2, side) for side in (*target.shape, 1)[:2])
    if chips_per_host != (2, 2):  # a slice smaller than a host
        options["chips_per_host_bounds"] = (*chips_per_host, 1)
    if target.count > 1:
        options["num_slices"] = target.count
    return options


def _gpu_options(target: Slice) -> dict[str, Any]:
    name, memory = HOPPER_CARDS[target.chip.name]
    bandwidth = int(target.chip.memory_bandwidth)
    return {
        "platform": "cuda",
        "topology_name": target.chip.name,
        "topology": f"1x{target.hosts}x{target.chips // target.hosts}",
        "target_config": HOPPER.format(name=name, memory=memory, bandwidth=bandwidth),
    }


def compiler_versions(target: Slice) -> str:
    """Name the packages that compile for a slice, with their versions."""
    gpu = target.chip.kind == "gpu"
    packages = ("jax-cuda13-pjrt", "jax-cuda12-pjrt", "tokamax") if gpu else ("libtpu",)
    versions = [f"jax {jax.__version__}"]
    for package in packages:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return ", ".join(versions)
