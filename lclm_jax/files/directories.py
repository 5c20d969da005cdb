"""Directories with one writer at a time, and new directories that appear when they are complete.

Training and preparation write into an existing directory (`locked`); conversions and exports make
a new one (`new_directory`). Neither removes anything that its process did not make.
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

from lclm_jax.errors import ConfigError, UserError
from lclm_jax.files.atomic import MAX_PREFIX

log = logging.getLogger(__name__)
LOCK = ".lock"
PARTIAL = ".partial"  # suffix of a directory that is being made
NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
RESERVED_SUFFIX = ".__lock"  # of TensorStore's lock files; it opens nothing below such a name
# Unicode categories: control characters, bytes that are not UTF-8, line and paragraph separators.
FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
MAX_HOLDER_BYTES = 4096  # of a lock file: the process that holds the lock, as JSON


class DirectoryError(UserError, OSError):
    """A directory that cannot be written, or is being written by another process."""


def check_path(path: str | Path, name: str):
    """Raise ConfigError for a path that cannot hold checkpoints.

    `name` is the setting or argument that the error names.
    """
    if "://" in str(path):
        raise ConfigError(
            f"{name} must be a path, got {path}; mount the bucket on all hosts, as with gcsfuse"
        )
    absolute = str(Path(path).absolute())
    forbidden = {
        character
        for character in absolute
        if character == "\\" or unicodedata.category(character) in FORBIDDEN_CATEGORIES
    }
    if forbidden:
        listed = ", ".join(ascii(character) for character in sorted(forbidden))
        raise ConfigError(
            f"{name} must be a path without backslashes and control characters, got {absolute!r} "
            f"with {listed}; choose another name"
        )
    if any(part.endswith(RESERVED_SUFFIX) for part in Path(absolute).parts):
        raise ConfigError(
            f"{name} must have no part that ends in {RESERVED_SUFFIX}, got {absolute}"
        )


def check_writable(directory: str | Path):
    """Make and remove a directory and a small file. Raises DirectoryError where that fails."""
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
    """Make a directory where needed and keep other writers out of it during the block.

    Raises DirectoryError that names the process writing there, or says why nobody can write.
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
    """Yield an empty directory that becomes `destination` after the block.

    Until then it lies in `.<name>.<random>.partial` beside the destination; an error removes it.
    Raises FileExistsError for a destination that exists, and DirectoryError for one that cannot be
    made, overlaps a source, or is being made by another process.
    """
    destination = Path(destination)
    for source in sources:
        _check_apart(destination, Path(source))
    _check_free(destination)
    parent, name = destination.resolve().parent, destination.name
    name_hash = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    prefix = f".{name[:MAX_PREFIX]}."
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(parent / f".{name_hash}{LOCK}", destination))
            _check_free(destination)
            _warn_about_unfinished(parent, prefix)
            temporary = Path(tempfile.mkdtemp(PARTIAL, prefix, parent))
        except DirectoryError:
            raise
        except FileExistsError as error:  # mkdir of a parent that is a file
            if os.path.lexists(destination):
                raise
            raise _not_made(destination, error) from error
        except OSError as error:
            raise _not_made(destination, error) from error
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        new = temporary / "new"  # mkdtemp makes its directory readable by this user only
        new.mkdir()
        try:
            yield new
            _check_free(destination)
            new.rename(destination)
        except (UserError, FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise _not_made(destination, error) from error


def _warn_about_unfinished(parent: Path, prefix: str):
    """Log a warning for every directory that an earlier process left unfinished."""
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(PARTIAL):
            log.warning("%s was never finished; remove it if no process writes it", path)


def _not_made(destination: Path, error: OSError) -> DirectoryError:
    return DirectoryError(f"cannot make {destination}: {error}")


def _check_free(destination: Path):
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination} exists; name a new directory or remove it first")


def _check_apart(destination: Path, source: Path):
    """Raise DirectoryError where one directory is the other or lies in it."""
    if not source.exists():
        return
    target, origin = destination.resolve(), source.resolve()
    in_source = any(path.exists() and path.samefile(origin) for path in (target, *target.parents))
    holds_source = target.exists() and any(target.samefile(path) for path in origin.parents)
    if in_source or holds_source:
        raise DirectoryError(
            f"expected a destination apart from the source, got {destination} and {source}; "
            "name a new directory elsewhere"
        )


# --- Locks ---

_descriptors: set[int] = set()  # open lock files of this process


def _close_all():
    """Release the parent's locks in a forked child, which could outlive the parent."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_all)


@contextmanager
def _lock(file: Path, directory: Path) -> Iterator[None]:
    """Hold an advisory lock on a file that exists only during the block.

    The kernel releases the lock when the process ends, however it ends.
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
        if descriptor in _descriptors:  # a forked child has none
            _descriptors.remove(descriptor)
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(file: Path, directory: Path) -> int:
    """Lock a file and write this process into it. Returns the open descriptor."""
    descriptor = _lock_file(file, directory)
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


def _lock_file(file: Path, directory: Path) -> int:
    """Open and lock a file. Raises DirectoryError where another process has the lock."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, MAX_HOLDER_BYTES, 0)
            os.close(descriptor)
            raise DirectoryError(
                f"{directory} is being written by {_describe(holder)}; wait until it ends, or name "
                "another directory"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS_ERRORS:
                os.close(descriptor)
                raise
            log.warning(
                "%s is on a file system without locks (%s): nothing keeps a second process out",
                directory,
                error.strerror,
            )
        if _is_open(descriptor, file):
            return descriptor
        os.close(descriptor)  # the process that had the lock has removed this file


def _is_open(descriptor: int, file: Path) -> bool:
    """Return whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _describe(holder: bytes) -> str:
    try:
        record = json.loads(holder)
        return f"process {record['process']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):  # not written yet, or its disk is full
        return "another process"
