"""Peak memory: of the device, or of the process where a device does not count its memory."""

import ctypes
import gc
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_FIELD = "VmHWM:"  # in kB
RESET_PEAK = "5"  # see proc(5)
OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|Out of memory", re.IGNORECASE)  # as JAX says


def peak_memory(devices: Sequence[Any] = ()) -> int | None:
    """Return the peak bytes in use on any of the devices since the process started.

    Without devices it is that of the first one. None where devices do not count their memory.
    """
    statistics = [device.memory_stats() or {} for device in devices or jax.devices()[:1]]
    return max((known.get("peak_bytes_in_use", 0) for known in statistics), default=0) or None


def memory_limit() -> int | None:
    """Return the bytes of the first device that the process may use."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def start_peak() -> int | None:
    """Forget the process's peak, and return its resident bytes now.

    Memory that compilation freed goes back to the system first, where glibc can be asked to. The
    peak of a device cannot be reset: measure ascending sizes, each process its own.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        RESET.write_text(RESET_PEAK, encoding="utf-8")
    return resident_peak()


def read_peak(devices: Sequence[Any] = ()) -> int | None:
    """Return the peak bytes of the devices, or else of the process since `start_peak`."""
    return peak_memory(devices) or resident_peak()


def resident_peak() -> int | None:
    """Return the peak resident bytes of this process; None where there is no /proc."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith(PEAK_FIELD))
    return 1024 * int(line.split()[1])


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))
