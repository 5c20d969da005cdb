"""Locks of a store: for writers, for one process that cleans up, and for one document."""

import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lclm_jax.files.directories import NO_LOCKS_ERRORS, DirectoryError
from lclm_jax.inference.store.objects import StoreError

log = logging.getLogger(__name__)
LOCK = "writers.lock"
LOCKS = 256


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Keep `cleaning` out during the block; waits until it has ended. Writers do not wait."""
    with _locked(directory / LOCK, fcntl.LOCK_SH):
        yield


@contextmanager
def cleaning(directory: Path) -> Iterator[None]:
    """Keep writers out during the block. Raises StoreError while there is one."""
    with _locked(directory / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextmanager
def changing(directory: Path, key: str) -> Iterator[None]:
    """Keep others from changing a document during the block; waits until they have ended.

    `key` is that of its entries. Documents share LOCKS files, so few wait for another document.
    """
    number = zlib.crc32(key.encode()) % LOCKS
    with _locked(directory / "locks" / f"{number:03}", fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(file: Path, mode: int) -> Iterator[None]:
    """Hold a lock that the kernel releases when the process ends, however it ends."""
    directory = file.parent
    try:
        directory.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DirectoryError(f"cannot write to {directory}: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, mode)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            os.close(descriptor)
            raise StoreError(
                f"{directory} is being written; clean up when the other process has ended"
            ) from None
        if error.errno not in NO_LOCKS_ERRORS:
            os.close(descriptor)
            raise
        log.warning("%s: no locks here (%s); do not clean up beside writers", directory, error)
    try:
        yield
    finally:
        os.close(descriptor)
