"""Errors that a user can correct, and the one line a command prints for them."""

import re
from importlib import metadata


class UserError(Exception):
    """An error whose message says what was expected, what came, and what to change."""


class TextError(UserError, ValueError):
    """A text, chat or tokenizer that cannot be used."""


class ConfigError(UserError, ValueError):
    """A setting that does not exist, or a value that it cannot take."""


class FileError(UserError, ValueError):
    """A file whose content is not of the expected kind."""


# Messages of other libraries that a setting or the machine causes: pattern -> remedy.
REMEDIES = {
    r"RESOURCE_EXHAUSTED|Out of memory": (
        "the device's memory is full; lower data.batch_rows, data.row_positions, "
        "data.row_windows or run.loss_chunk, raise run.micro_batches, set model.remat=full, "
        "or use more devices"
    ),
    r"Unable to initialize backend|Unknown backend": (
        "no such devices here; set or unset JAX_PLATFORMS"
    ),
    r"No space left on device": "the disk is full",
    r"Read-only file system|Permission denied": "choose a directory that can be written",
}


def describe(error: BaseException) -> str | None:
    """Return one line that says what to do about an error; None for a defect of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, MemoryError):
        return "this machine's memory is full; read less at once, or use a larger one"
    if isinstance(error, OSError):
        return _describe_file_error(error)
    if isinstance(error, (RuntimeError, ValueError)):  # as jax, orbax and tensorstore raise them
        message = str(error)
        for pattern, remedy in REMEDIES.items():
            if re.search(pattern, message):
                return f"{message.strip().splitlines()[0][:300]}: {remedy}"
    return None


def _describe_file_error(error: OSError) -> str:
    """Return the path, or both paths, of an operation and the system's reason for its failure."""
    if error.strerror is None or error.filename is None:
        return str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {error.strerror}"


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """Return how to install a package; None for a module that no requirement names."""
    name = (error.name or "").partition(".")[0]
    try:
        requirements = metadata.requires("lclm_jax") or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        if package and package[0].lower().replace("-", "_") == name.lower():
            extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
            target = f".[{extra[1]}]" if extra else "."
            return f"the package {package[0]} is not installed; pip install -e '{target}'"
    return None
