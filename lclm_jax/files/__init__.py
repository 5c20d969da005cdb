"""Files and directories that appear complete or not at all, their checksums, and their text."""

from lclm_jax.files.atomic import publish, write_whole
from lclm_jax.files.checksums import find_damage, hash_file, write_checksums
from lclm_jax.files.directories import DirectoryError, locked, new_directory
from lclm_jax.files.reading import read_json, read_text

__all__ = [
    "DirectoryError",
    "find_damage",
    "hash_file",
    "locked",
    "new_directory",
    "publish",
    "read_json",
    "read_text",
    "write_checksums",
    "write_whole",
]
