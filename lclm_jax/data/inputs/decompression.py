"""Compressed files as one stream of bytes, by their first bytes and whatever their names.

Several frames, skippable frames and padding between them are read; a stream that breaks off or is
damaged raises OSError or EOFError after all that came before it.
"""

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lclm_jax.data.inputs.libraries import require

PIECE = 1 << 12  # bytes decompressed at a time: each may hold a thousand times as many
WINDOW = 1 << 31  # bytes that a zstd frame may look back, as `zstd --long=31` writes them
DICTIONARY = 1 << 30  # bytes an xz decoder may take
GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# Byte order marks, the longer ones first, for one of UTF-32 begins as one of UTF-16 does.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_compressed(path: Path) -> bool:
    """Whether the first bytes of a file are those of a compressed one."""
    with path.open("rb") as file:
        return _form(file.read(6)) is not None


def open_decompressed(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        form = _form(file.read(6))
        file.seek(0)
        stack.pop_all()  # the reader closes it
    return file if form is None else io.BufferedReader(_Decompressed(file, form), 1 << 20)


def open_text(path: Path) -> BinaryIO:
    """The text of a file as UTF-8, decompressed: UTF-16 and UTF-32 with a mark are read, too."""
    file = open_decompressed(path)
    encoding = encoding_of(file.read(4))
    file.close()
    file = open_decompressed(path)
    return file if encoding is None else io.BufferedReader(_Recoded(file, encoding), 1 << 20)


def encoding_of(head: bytes) -> str | None:
    """The encoding that a byte order mark names; None for UTF-8 and where there is none."""
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), None)


@dataclass(frozen=True)
class _Form:
    """A compressed format: what decompresses a frame, and what that raises for damaged bytes."""

    decompressor: Callable[[], Any]
    damage: tuple[type[Exception], ...]


def _form(head: bytes) -> _Form | None:
    """The format that a file begins with, if it is a compressed one."""
    if head.startswith(GZIP):
        return _Form(lambda: zlib.decompressobj(31), (zlib.error,))
    if head.startswith(BZIP2):
        return _Form(bz2.BZ2Decompressor, (OSError, ValueError))
    if head.startswith(XZ):
        make = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=DICTIONARY)
        return _Form(make, (lzma.LZMAError,))
    # Skippable frames begin with sixteen different bytes.
    if head.startswith(ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        zstandard = require("zstandard")
        library = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        return _Form(library.decompressobj, (zstandard.ZstdError,))
    return None


class _Decompressed(io.RawIOBase):
    """The frames of a file as one stream."""

    def __init__(self, file: BinaryIO, form: _Form):
        self.file, self.form, self.frame, self.ready = file, form, None, io.BytesIO()
        self.problem: OSError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.ready.readinto(buffer)):
            if self.problem:
                raise self.problem
            if not (block := self.file.read(PIECE)):
                if self.frame is not None:
                    raise EOFError("the last compressed frame is not complete")
                return 0
            self._feed(block)
        return count

    def _feed(self, block: bytes):
        parts = []
        try:
            while block:
                if self.frame is None:
                    block = block.lstrip(b"\0")  # padding between frames and after the last
                    if not block:
                        break
                    self.frame = self.form.decompressor()
                parts.append(self.frame.decompress(block))
                block = self.frame.unused_data if self.frame.eof else b""
                self.frame = None if self.frame.eof else self.frame
        except self.form.damage as error:
            self.problem = OSError(str(error))  # raised once what came before is given out
        self.ready = io.BytesIO(b"".join(parts))

    def close(self):
        self.file.close()
        super().close()


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str):
        self.file, self.ready = file, io.BytesIO()
        self.decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.ready.readinto(buffer)):
            block = self.file.read(1 << 16)
            text = self.decoder.decode(block, final=not block)
            if not text and not block:
                return 0
            self.ready = io.BytesIO(text.encode("utf-8"))
        return count

    def close(self):
        self.file.close()
        super().close()
