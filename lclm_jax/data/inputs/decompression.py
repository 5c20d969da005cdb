"""Compressed files as one stream of bytes; the first bytes decide the format, not the name.

Several frames, skippable frames and padding between them are read. A truncated or damaged stream
raises OSError or EOFError after everything before the damage has been read.
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

COMPRESSED_BLOCK = 1 << 12  # bytes decompressed at once: they may expand a thousandfold
RECODED_BLOCK = 1 << 16  # bytes of another encoding converted at once
BUFFER = 1 << 20  # bytes of decompressed data read ahead
MAX_ZSTD_WINDOW = 1 << 31  # bytes a zstd frame may refer back, as `zstd --long=31` writes them
MAX_XZ_MEMORY = 1 << 30  # bytes
MAGIC_BYTES = 6  # enough to recognise every compressed format
GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
GZIP_WBITS = 31  # zlib: a gzip header and the largest window
SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# UTF-32 comes first: its little-endian byte order mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as a compressed one."""
    with path.open("rb") as file:
        return _find_codec(file.read(MAGIC_BYTES)) is not None


def open_decompressed(path: Path) -> BinaryIO:
    """Open a file for reading its bytes, decompressed."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        codec = _find_codec(file.read(MAGIC_BYTES))
        file.seek(0)
        stack.pop_all()  # the caller closes the file
    return file if codec is None else io.BufferedReader(_Decompressed(file, codec), BUFFER)


def open_text(path: Path) -> BinaryIO:
    """Open a file for reading its text as UTF-8, decompressed.

    UTF-16 and UTF-32 with a byte order mark are converted; any other file is left as it is.
    """
    with open_decompressed(path) as file:
        encoding = encoding_of(file.read(4))
    file = open_decompressed(path)
    return file if encoding is None else io.BufferedReader(_Recoded(file, encoding), BUFFER)


def encoding_of(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names; None for UTF-8 and without a mark."""
    matches = (name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark))
    return next(matches, None)


@dataclass(frozen=True)
class _Codec:
    """A compressed format.

    Attributes:
        make_decompressor: returns an object that decompresses one frame.
        damage_errors: exceptions it raises for damaged bytes.
    """

    make_decompressor: Callable[[], Any]
    damage_errors: tuple[type[Exception], ...]


def _find_codec(head: bytes) -> _Codec | None:
    """Return the compressed format that a file begins with."""
    if head.startswith(GZIP):
        return _Codec(lambda: zlib.decompressobj(GZIP_WBITS), (zlib.error,))
    if head.startswith(BZIP2):
        return _Codec(bz2.BZ2Decompressor, (OSError, ValueError))
    if head.startswith(XZ):
        make = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
        return _Codec(make, (lzma.LZMAError,))
    if head.startswith(ZSTD) or _is_skippable_frame(head):
        zstandard = require("zstandard")
        library = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        return _Codec(library.decompressobj, (zstandard.ZstdError,))
    return None


def _is_skippable_frame(head: bytes) -> bool:
    """Return whether a zstd frame without data begins here: 0x184D2A50 to 0x184D2A5F."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


class _Decompressed(io.RawIOBase):
    """All frames of a file as one stream."""

    def __init__(self, file: BinaryIO, codec: _Codec):
        self.file, self.codec, self.frame, self.ready = file, codec, None, io.BytesIO()
        self.damage: OSError | None = None  # raised once the bytes before it have been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self.ready.readinto(buffer)):
            if self.damage:
                raise self.damage
            block = self.file.read(COMPRESSED_BLOCK)
            if not block:
                if self.frame is not None:
                    raise EOFError("the last compressed frame is not complete")
                return 0
            self._decompress(block)
        return count

    def _decompress(self, block: bytes):
        """Make the content of a block of the file ready to be read."""
        parts = []
        try:
            while block:
                if self.frame is None:
                    block = block.lstrip(b"\0")  # padding between frames and after the last
                    if not block:
                        break
                    self.frame = self.codec.make_decompressor()
                parts.append(self.frame.decompress(block))
                block = self.frame.unused_data if self.frame.eof else b""
                self.frame = None if self.frame.eof else self.frame
        except self.codec.damage_errors as error:
            self.damage = OSError(str(error))
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
            block = self.file.read(RECODED_BLOCK)
            text = self.decoder.decode(block, final=not block)
            if not text and not block:
                return 0
            self.ready = io.BytesIO(text.encode("utf-8"))
        return count

    def close(self):
        self.file.close()
        super().close()
