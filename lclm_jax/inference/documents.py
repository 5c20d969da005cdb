"""Documents that a user names, as text to compress: files, directories and patterns.

Text and source code are read as they are. PDF, DOCX, EPUB and HTML are converted to Markdown by
the converters of markitdown, which see the bytes of one file and open nothing else.
"""

import io
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape, glob
from itertools import islice
from pathlib import Path

from lclm_jax.data.inputs.decompression import encoding_of, open_decompressed
from lclm_jax.data.inputs.files import Rejection, read_unit
from lclm_jax.data.inputs.formats import UnreadError, find_form
from lclm_jax.data.inputs.libraries import require
from lclm_jax.data.inputs.trees import BINARY_FORMS, find_texts
from lclm_jax.data.inputs.units import Unit
from lclm_jax.errors import TextError, UserError
from lclm_jax.progress import Progress, without_progress

EXTRA = "documents"  # installs markitdown
MAX_DOCUMENT_BYTES = 64 << 20  # of a file to convert, and of all that a DOCX or EPUB unpacks to
HEAD_BYTES = 1 << 12  # of a file that decide its kind
CONVERTERS = {
    "PDF": "PdfConverter",
    "DOCX": "DocxConverter",
    "EPUB": "EpubConverter",
    "HTML": "HtmlConverter",
}
SUFFIXES = {
    ".pdf": "PDF",
    ".docx": "DOCX",
    ".epub": "EPUB",
    ".html": "HTML",
    ".htm": "HTML",
    ".xhtml": "HTML",
}
MAGIC = {
    b"%PDF-": "PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old or encrypted Office file",
}
ZIP_MAGIC = b"PK\x03\x04"
ZIP_PARTS = {
    "word/document.xml": "DOCX",
    "META-INF/container.xml": "EPUB",
    "ppt/presentation.xml": "PPTX",
    "xl/workbook.xml": "XLSX",
}
HTML_BEGINNING = re.compile(
    r"\s*(<\?xml[^>]*>\s*)?(?>(<!--.*?-->\s*)*)<(!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
DECLARED_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
EMBEDDED_IMAGE = re.compile(r"!\[([^\]\n]*)\]\(data:[^)\n]*\)")
READABLE = "text, PDF, DOCX, EPUB or HTML"


@dataclass(frozen=True)
class Document:
    """The text of a file.

    Attributes:
        name: the path as the user gave it; for a file found in a directory, the directory as
            given and the path from there. In POSIX form.
        text: all of it, never empty; Markdown if it was converted.
    """

    name: str
    text: str


def read_documents(
    paths: Iterable[str | Path], progress: Progress = without_progress
) -> Iterator[Document | Rejection]:
    """Yield the document of each file, or a rejection that says why there is none.

    A path is a file, a directory, whose visible files are read by name, or a pattern such as
    `docs/*.md`. Content decides how a file is read, and its suffix where that is not enough. One
    document is held at a time.

    Beside the reasons of `Rejection` there are "missing" and "encrypted"; "empty" includes
    documents without text, such as scanned ones. Raises UserError when a library that a file needs
    is not installed, and MemoryError.
    """
    targets = [target for path in paths for target in _find_targets(str(path))]
    for target in progress(targets, "reading documents"):
        yield target if isinstance(target, Rejection) else _read_file(target)


def read_document(path: str | Path) -> Document:
    """Return the document of a file; see `read_documents`.

    Raises TextError for a directory or pattern of several files, and for a file that cannot be
    read.
    """
    is_directory = bool(str(path)) and Path(path).is_dir()
    documents = [] if is_directory else list(islice(read_documents([path]), 2))
    if len(documents) != 1:
        raise TextError(
            f"expected one file, got a directory or pattern: {path}; name a file, or use add_all"
        )
    (document,) = documents
    if isinstance(document, Rejection):
        raise TextError(f"{document.file}: {document.detail}")
    return document


def group_documents(
    documents: Iterable[Document | Rejection], shortest: int, longest: int
) -> Iterator[list[Document | Rejection]]:
    """Yield consecutive documents in groups of at most `longest` characters; a longer one is alone.

    Each counts as at least `shortest` characters. Documents before an error are yielded first.
    """
    group: list[Document | Rejection] = []
    size = 0
    try:
        for document in documents:
            characters = len(document.text) if isinstance(document, Document) else 0
            size += max(shortest, characters)
            if group and size > longest:
                yield group
                group, size = [], max(shortest, characters)
            group.append(document)
    except UserError:
        yield group
        raise
    yield group


def _find_targets(pattern: str) -> list[Path | Rejection]:
    """Return the files that a path or pattern stands for, and what cannot be read there."""
    # Path.glob rejects absolute patterns. A name may itself have the characters of a pattern.
    names = glob(escape(pattern)) or glob(pattern, recursive=True)  # noqa: PTH207
    matches = {Path(name) for name in names}
    tops = sorted(path for path in matches if not matches.intersection(path.parents))
    if not tops:
        detail = (
            "expected a file, a directory or a pattern such as docs/*.md, got nothing there; "
            "check the path"
        )
        return [Rejection(pattern, 0, "missing", detail)]
    return [target for top in tops for target in _find_files(top)]


def _find_files(path: Path) -> list[Path | Rejection]:
    """Return a file itself, or the files below a directory and what cannot be read there."""
    if not path.is_dir():
        return [path]
    top = path.resolve()
    texts, unread = find_texts(path)
    targets: dict[Path, Path | Rejection] = {text: text for text, _ in texts}
    for file in unread:
        # What is not text may be a document.
        is_candidate = file.reason == "not text" and file.path.resolve().is_relative_to(top)
        rejection = Rejection(str(file.path), 0, file.reason, file.detail)
        targets[file.path] = file.path if is_candidate else rejection
    if not targets:
        detail = "expected files in the directory, got none that is visible; name them to read them"
        return [Rejection(str(path), 0, "empty", detail)]
    return [targets[file] for file in sorted(targets)]


def _read_file(path: Path) -> Document | Rejection:
    """Return the document of a file, or a rejection for any error that the file causes."""
    try:
        return Document(_name(path), _read(path))
    except UnreadError as error:
        reason, detail = error.reason, error.detail
    except (UserError, MemoryError):  # a library is missing, or memory is full
        raise
    except Exception as error:  # noqa: BLE001 - the other files are read whatever one causes
        reason = "corrupt"
        message = " ".join(str(error).split())[:300]
        detail = (
            f"expected a whole file, got {type(error).__name__}: {message}; "
            "open it where it was made and save it again"
        )
    return Rejection(str(path), 0, reason, detail)


def _name(path: Path) -> str:
    """Return a path in POSIX form, as text that can be encoded."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _read(path: Path) -> str:
    """Return the text of a file. Raises UnreadError if it has none."""
    refusal = _refuse_as_text(path)
    kind = _find_kind(path, is_text=refusal is None)
    if kind in CONVERTERS:
        return _read_converted(path, kind)
    if kind is not None:
        advice = "save it as PDF, without a password"
        raise UnreadError("other format", f"expected {READABLE}, got {kind}; {advice}")
    if refusal is not None:
        raise UnreadError(refusal.reason, f"{refusal.detail}; convert it to {READABLE}")
    row = next(read_unit(Unit("text", (str(path),))))
    if isinstance(row, Rejection):
        raise UnreadError(row.reason, row.detail)
    return row.fields["text"]


def _refuse_as_text(path: Path) -> UnreadError | None:
    """Return why a file is not text; None for a text, JSON or a table.

    Raises UnreadError if it cannot be anything else either: a pipe, a damaged file.
    """
    try:
        form = find_form(path)
    except UnreadError as error:
        if error.reason != "not text":
            raise
        return error
    return UnreadError("not text", f"expected text, got {form}") if form in BINARY_FORMS else None


def _find_kind(path: Path, is_text: bool) -> str | None:
    """Return the kind of a document by its content, then by its suffix; None for other files."""
    with open_decompressed(path) as file:
        head = file.read(HEAD_BYTES)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if head.startswith(ZIP_MAGIC):
        kind = _find_zip_kind(path)
    elif is_text and HTML_BEGINNING.match(head.decode(encoding_of(head) or "utf-8-sig", "ignore")):
        kind = "HTML"
    kind = kind or SUFFIXES.get(path.suffix.lower())
    return None if kind == "HTML" and not is_text else kind


def _find_zip_kind(path: Path) -> str | None:
    """Return the kind of a ZIP archive by its parts; None for other and damaged ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = set(archive.namelist())
    except zipfile.BadZipFile:
        return None
    return next((kind for part, kind in ZIP_PARTS.items() if part in parts), None)


def _read_converted(path: Path, kind: str) -> str:
    """Return the text of a document of one of CONVERTERS as Markdown."""
    with open_decompressed(path) as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if not data:
        raise UnreadError("empty", f"expected {kind}, got an empty file; save it again")
    unpacked = _unpacked_bytes(data) if kind in ("DOCX", "EPUB") else len(data)
    if max(len(data), unpacked) > MAX_DOCUMENT_BYTES:
        detail = f"expected at most {MAX_DOCUMENT_BYTES} bytes of {kind}, got more; split the file"
        raise UnreadError("too long", detail)
    text = _tidy(_convert(_decode_page(data).encode() if kind == "HTML" else data, kind))
    if not text:
        advice = "if it is scanned, run OCR on it and read the result"
        raise UnreadError("empty", f"expected text, got a {kind} file without any; {advice}")
    return text


def _unpacked_bytes(data: bytes) -> int:
    """Return the size of all parts of a ZIP archive, which reading them cannot exceed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return sum(part.file_size for part in archive.infolist())


def _decode_page(data: bytes) -> str:
    """Decode HTML by its byte order mark, as UTF-8, or by the charset it declares."""
    try:
        return data.decode(encoding_of(data) or "utf-8-sig")
    except UnicodeDecodeError as error:
        declared = DECLARED_CHARSET.search(data, 0, HEAD_BYTES)
        if declared is None:
            detail = f"expected UTF-8, got byte {data[error.start]:#x} at {error.start}"
            raise UnreadError("encoding", f"{detail}; save it as UTF-8") from error
    return data.decode(declared[1].decode())


def _convert(data: bytes, kind: str) -> str:
    """Convert a document of one of CONVERTERS to Markdown.

    The converter is called itself: markitdown's front would also try its readers of web sites,
    and plugins.
    """
    stream_info = require("markitdown", EXTRA).StreamInfo()
    converter = getattr(require("markitdown.converters", EXTRA), CONVERTERS[kind])()
    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns of all that it mends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pages nested too deep for Markdown: plain text comes
        try:
            return converter.convert(io.BytesIO(data), stream_info).markdown
        except require("pdfminer.pdfdocument", EXTRA).PDFPasswordIncorrect as error:
            detail = "expected a PDF that opens without a password; remove the password"
            raise UnreadError("encrypted", detail) from error


def _tidy(markdown: str) -> str:
    """Return Markdown without embedded images, page marks, blanks at line ends and empty space."""
    encodable = markdown.encode(errors="replace").decode()  # a PDF may have halves of characters
    named = EMBEDDED_IMAGE.sub(r"\1", encodable)
    lines = "\n".join(line.rstrip() for line in named.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n")
