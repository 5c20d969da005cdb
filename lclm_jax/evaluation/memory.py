"""Peak memory: of the device, or of the process where a device does not count its memory."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import jax

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_FIELD = "VmHWM:"  # in kB
RESET_PEAK = "5"  # see proc(5)


def peak_memory() -> int | None:
    """Return the peak bytes in use on the first device since the process started."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


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


def read_peak() -> int | None:
    """Return the peak bytes of the device, or else of the process since `start_peak`."""
    return peak_memory() or resident_peak()


def resident_peak() -> int | None:
    """Return the peak resident bytes of this process; None where there is no /proc."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith(PEAK_FIELD))
    return 1024 * int(line.split()[1])
