"""Objects of a store: immutable arrays and texts under keys, in a directory or a bucket.

TensorStore writes an object under a temporary name, flushes it and renames it, so an object is
whole or absent, whatever ends a process. Arrays are a safetensors file with a checksum of all.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from lclm_jax.errors import UserError

DIGEST = "sha256"  # name of the tensor that has the checksum of the others
DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I64": np.int64,
    "U8": np.uint8,
}


class StoreError(UserError, ValueError):
    """A store, or an object of one, that cannot be read or written."""


class Objects:
    """The objects of a store by key, such as `texts/3f2a`.

    Reads and writes return futures. Several processes may read and write.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._kv: Any = ts.KvStore.open({"driver": "file", "path": f"{directory}/"}).result()

    def read(self, keys: Iterable[str]) -> list[bytes | None]:
        """Return the values of keys, None where there is no object."""
        futures = [self._kv.read(key) for key in keys]
        results = [self._wait(future, "read") for future in futures]
        return [result.value if result.state == "value" else None for result in results]

    def write(self, values: Mapping[str, bytes]):
        """Write objects, and return when they are on disk.

        Raises StoreError if one cannot be written, as on a full disk; the others are whole.
        """
        futures = [self._kv.write(key, value) for key, value in values.items()]
        errors = []
        for future in futures:
            try:
                self._wait(future, "write")
            except StoreError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def remove(self, keys: Iterable[str]):
        """Remove objects."""
        for future in [self._kv.write(key, None) for key in keys]:
            self._wait(future, "remove")

    def list(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix that ends in `/`, in order."""
        stop = prefix[:-1] + chr(ord("/") + 1)
        keys = self._wait(self._kv.list(ts.KvStore.KeyRange(prefix, stop)), "list")
        return sorted(key.decode("utf-8", "replace") for key in keys)

    def _wait(self, future: Any, action: str) -> Any:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            reason = str(error).partition(" [")[0].rpartition(": ")[2]
            raise StoreError(
                f"cannot {action} in {self.directory}: {reason}; free some space or check the "
                "permissions. What was written before is whole"
            ) from error


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays, with their checksum, as the bytes of a safetensors file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    digest = np.frombuffer(_digest(arrays), np.uint8)
    return save({**arrays, DIGEST: digest})


def unpack_arrays(value: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of `pack_arrays`. Raises StoreError for damaged bytes."""
    try:
        arrays = {
            name: np.frombuffer(info["data"], DTYPES[info["dtype"]]).reshape(info["shape"])
            for name, info in deserialize(value)
        }
        digest = arrays.pop(DIGEST)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"expected arrays with a checksum, got other bytes ({error})") from error
    if digest.tobytes() != _digest(arrays):
        raise StoreError("the checksum does not fit; the bytes are not as they were written")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.digest()
