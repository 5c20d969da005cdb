"""Directories with one writer at a time, which get their name when they are whole.

Training and preparation write into a directory that stays (`locked`), conversions and exports
make a new one (`new_directory`). Neither removes anything that its process did not make.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from lclm_jax.config import ConfigError
from lclm_jax.errors import UserError

log = logging.getLogger(__name__)
LOCK = ".lock"
PARTIAL = ".partial"  # the end of the name of a directory that is being made
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
RESERVED = ".__lock"  # TensorStore's own lock files end so; it opens nothing below such a name
# Control characters, bytes that are not UTF-8, line and paragraph separators.
NOT_PRINTABLE = ("Cc", "Cs", "Zl", "Zp")


class DirectoryError(UserError, OSError):
    """A directory that cannot be written, or that another process is writing."""


def check_path(path: str | Path, name: str):
    """Raises ConfigError for a path below which checkpoints cannot be stored; `name` says whose."""
    if "://" in str(path):
        raise ConfigError(
            f"{name} must be a path, got {path}; mount the bucket on all hosts, as with gcsfuse"
        )
    absolute = str(Path(path).absolute())
    odd = {c for c in absolute if c == "\\" or unicodedata.category(c) in NOT_PRINTABLE}
    if odd:
        listed = ", ".join(ascii(character) for character in sorted(odd))
        raise ConfigError(
            f"{name} must be a path without backslashes and control characters, got {absolute!r} "
            f"with {listed}; choose another name"
        )
    if any(part.endswith(RESERVED) for part in Path(absolute).parts):
        raise ConfigError(f"{name} must have no part that ends in {RESERVED}, got {absolute}")


def check_writable(directory: str | Path):
    """Raises DirectoryError unless a directory and a small file can be made and removed below."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".probe-", dir=directory) as place,
            (Path(place) / "file").open("wb") as file,
        ):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DirectoryError(f"cannot write to {directory}: {error.strerror or error}") from error


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Makes a directory if it is not there and keeps other writers out of it while the block runs.

    Raises DirectoryError that names the process that writes there, or says why nobody can.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DirectoryError(f"cannot make {directory}: {error.strerror or error}") from error
    with _lock(directory / LOCK, directory):
        yield


@contextmanager
def new_directory(destination: str | Path, *sources: str | Path) -> Iterator[Path]:
    """Yields an empty directory to write into, which becomes `destination` at the end of the block.

    Until then it lies beside it, in `.<name>.<random>.partial`, and is removed after an error. A
    second process that makes the same destination is refused. Raises FileExistsError when the
    destination is there already, DirectoryError when it cannot be made or lies in a source.
    """
    destination = Path(destination)
    for source in sources:
        _check_apart(destination, Path(source))
    _check_free(destination)
    parent, name = destination.resolve().parent, destination.name
    own = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    prefix = f".{name[:40]}."
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(parent / f".{own}{LOCK}", destination))
            _check_free(destination)
            for path in parent.iterdir():
                if path.name.startswith(prefix) and path.name.endswith(PARTIAL):
                    log.warning("%s was never finished; remove it if no process writes it", path)
            temporary = Path(tempfile.mkdtemp(PARTIAL, prefix, parent))
        except DirectoryError:
            raise
        except FileExistsError as error:  # of a parent that is a file
            if os.path.lexists(destination):
                raise
            raise _not_made(destination, error) from error
        except OSError as error:
            raise _not_made(destination, error) from error
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        new = temporary / "new"  # mkdtemp's own directory is for this user alone
        new.mkdir()
        try:
            yield new
            _check_free(destination)
            new.rename(destination)
        except (UserError, FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise _not_made(destination, error) from error


def _not_made(destination: Path, error: OSError) -> DirectoryError:
    return DirectoryError(f"cannot make {destination}: {error}")


def _check_free(destination: Path):
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination} exists; name a new directory or remove it first")


def _check_apart(destination: Path, source: Path):
    """Raises DirectoryError where one of two directories is, or lies in, the other."""
    if not source.exists():
        return
    target, origin = destination.resolve(), source.resolve()
    below = any(path.exists() and path.samefile(origin) for path in (target, *target.parents))
    above = target.exists() and any(target.samefile(path) for path in origin.parents)
    if below or above:
        raise DirectoryError(
            f"expected a destination apart from the source, got {destination} and {source}; "
            "name a new directory elsewhere"
        )


# --- Locks ---

_descriptors: set[int] = set()  # of the locks that this process holds


def _close_all():
    """Gives up the locks of the parent in a forked child, which would outlive it with them."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_all)


@contextmanager
def _lock(file: Path, directory: Path) -> Iterator[None]:
    """Holds an advisory lock on a file that is there for the time of the block only.

    The kernel frees it when the process ends, however it ends.
    """
    try:
        descriptor = _acquire(file, directory)
    except DirectoryError:
        raise
    except OSError as error:
        raise DirectoryError(f"cannot write to {file.parent}: {error.strerror or error}") from error
    _descriptors.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _descriptors:  # not in a forked child
            _descriptors.remove(descriptor)
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(file: Path, directory: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise DirectoryError(
                f"{directory} is being written by {_describe(holder)}; wait until it ends, or name "
                "another directory"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            log.warning(
                "%s is on a file system without locks (%s): nothing keeps a second process out",
                directory,
                error.strerror,
            )
        if _is_open(descriptor, file):
            break
        os.close(descriptor)  # removed by the process that had it until now
    holder = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _is_open(descriptor: int, file: Path) -> bool:
    """Whether the file of this name is the one that is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _describe(holder: bytes) -> str:
    try:
        found = json.loads(holder)
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has just begun, or its disk is full
        return "another process"
