"""Documents of every kind as text, and a rejection for each file that has none."""

import gzip
import io
import os
import socket
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lclm_jax.data.inputs.files import Rejection
from lclm_jax.errors import UserError
from lclm_jax.inference import documents
from lclm_jax.inference.documents import Document, group_documents, read_documents

pytestmark = pytest.mark.newest

ENCRYPTION = b"<</Filter/Standard/V 1/R 2/Length 40/P -4/O(%s)/U(%s)>>" % (b"o" * 32, b"u" * 32)
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
HEADING = '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Figs</w:t></w:r></w:p>'
PARAGRAPH = "<w:p><w:r><w:t>Ada likes figs.</w:t></w:r></w:p>"
EXTERNAL_IMAGE = """
<w:p><w:r><w:drawing><wp:inline
 xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"
 xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"
 xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">
<a:graphic><a:graphicData><pic:pic><pic:blipFill><a:blip r:link="rId9"/></pic:blipFill></pic:pic>
</a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>"""


compressed = partial(gzip.compress, mtime=0)  # the same in every process
CUT = compressed(np.random.default_rng(0).bytes(100))[:50]


def make_pdf(text, encryption=None):
    """A PDF of one page with a line of text; none if it is empty."""
    content = b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % text.encode() if text else b""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    trailer = b"/Root 1 0 R/ID[(i)(i)]"
    if encryption:
        objects.append(encryption)
        trailer += b"/Encrypt 6 0 R"
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    head = b"xref\n0 %d\n0000000000 65535 f \n" % count
    tail = b"trailer<</Size %d%s>>\nstartxref\n%d\n%%%%EOF" % (count, trailer, len(data))
    return data + head + table + tail


def make_zip(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def make_docx(body, link=""):
    """A DOCX of these paragraphs, with the address of an image outside it."""
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    image = f'<Relationship Id="rId9" Type="{OFFICE}/image" Target="{link}" TargetMode="External"/>'
    return make_zip(
        {
            "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default '
            'Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships'
            f'+xml"/><Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
            "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1"'
            f' Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
            "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
            f"{image if link else ''}</Relationships>",
        }
    )


def make_epub(pages):
    items = "".join(f'<item id="p{i}" href="{i}.xhtml"/>' for i in range(len(pages)))
    spine = "".join(f'<itemref idref="p{i}"/>' for i in range(len(pages)))
    return make_zip(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfile full-path="book.opf"/></container>',
            "book.opf": f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>",
            **{f"{i}.xhtml": page for i, page in enumerate(pages)},
        }
    )


PDF = make_pdf("Ada likes figs.")
DOCX = make_docx(HEADING + PARAGRAPH)
EPUB = make_epub(["<html><h1>Figs</h1></html>", "<html><p>Ada likes figs.</p></html>"])
PAGE = "<!-- x --><!DOCTYPE html><title>x</title><body><h1>Figs</h1><p>Ada <b>likes</b> figs: café."
PAGE_TEXT = "# Figs\n\nAda **likes** figs: café."


def read(*paths):
    return list(read_documents(paths))


def read_bytes(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (result,) = read(tmp_path / name)
    return result


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("notes.txt", b"\xef\xbb\xbfone\r\ntwo \n", "one\r\ntwo \n"),
        ("notes.md", "# café\n".encode("utf-16"), "# café\n"),
        ("code.py", b"import this\n\n\n\n", "import this\n\n\n\n"),
        ("README", b"<h1>a logo</h1> of Markdown", "<h1>a logo</h1> of Markdown"),
        ("comments.md", b"<!---->" * 500 + b"text", "<!---->" * 500 + "text"),
        ("rows.jsonl", b'{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 2}\n'),
        ("notes.txt.gz", compressed(b"packed"), "packed"),
    ],
)
def test_text_is_read_as_it_is(tmp_path, name, data, text):
    assert read_bytes(tmp_path, name, data) == Document((tmp_path / name).as_posix(), text)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.pdf", PDF, "Ada likes figs."),
        ("pdf.txt", PDF, "Ada likes figs."),
        ("a.pdf.gz", compressed(PDF), "Ada likes figs."),
        ("a.docx", DOCX, "# Figs\n\nAda likes figs."),
        ("docx.bin", DOCX, "# Figs\n\nAda likes figs."),
        ("a.epub", EPUB, "# Figs\n\nAda likes figs."),
        ("a.html", PAGE.encode(), PAGE_TEXT),
        ("html.txt", PAGE.encode(), PAGE_TEXT),
        ("a.htm", PAGE.encode("utf-16"), PAGE_TEXT),
        ("part.HTML", b"<p>Ada likes figs.", "Ada likes figs."),
        ("old.html", "<meta charset='latin1'>café".encode("latin1"), "café"),
        (
            "image.html",
            b'figs<img src="data:image/png;base64,AAAA" alt="two figs">',
            "figstwo figs",
        ),
    ],
)
def test_documents_are_converted_whatever_their_name_says(tmp_path, name, data, text):
    assert read_bytes(tmp_path, name, data) == Document((tmp_path / name).as_posix(), text)


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("empty.txt", b"", "empty", "expected text, got none"),
        ("empty.pdf", b"", "empty", "got an empty file"),
        ("blank.md", b" \n", "empty", "expected text, got none"),
        ("scanned.pdf", make_pdf(""), "empty", "run OCR"),
        ("empty.docx", make_docx(""), "empty", "DOCX file without any"),
        ("empty.html", b"<html><script>x</script></html>", "empty", "HTML file without any"),
        ("image.png", b"\x89PNG\0", "not text", "convert it to text, PDF, DOCX"),
        ("binary.txt", b"a\0b", "not text", "got a zero at byte 1; convert it"),
        ("binary.html", b"<html>\0", "not text", "got a zero"),
        ("data.txt", b"PAR1", "not text", "got parquet"),
        ("archive.zip", make_zip({"a": "b"}), "not text", "convert it"),
        ("latin1.txt", b"caf\xe9", "encoding", "expected UTF-8, got byte 0xe9 at 3"),
        ("latin1.html", b"<html>caf\xe9", "encoding", "save it as UTF-8"),
        ("secret.pdf", make_pdf("x", ENCRYPTION), "encrypted", "remove the password"),
        ("cut.pdf", PDF[:60], "corrupt", "save it again"),
        ("text.pdf", b"no PDF", "corrupt", "save it again"),
        ("cut.docx", DOCX[:-30], "corrupt", "save it again"),
        ("broken.docx", make_zip({"word/document.xml": ""}), "corrupt", "save it again"),
        ("cut.gz", CUT, "unreadable", "can be read"),
        ("slides.pptx", make_zip({"ppt/presentation.xml": ""}), "other format", "got PPTX; save"),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", "other format", "without a password"),
    ],
)
def test_a_file_without_text_is_rejected_with_advice(tmp_path, name, data, reason, detail):
    result = read_bytes(tmp_path, name, data)
    assert isinstance(result, Rejection)
    assert (result.file, result.number, result.reason) == (str(tmp_path / name), 0, reason)
    assert detail in result.detail


def test_what_is_no_file_is_rejected_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("lost").symlink_to("nowhere")
    Path("none").mkdir()
    Path("a.txt").write_text("a", encoding="utf-8")
    long = "text in place of a path " * 100
    *rejections, document = read("pipe", "/dev/zero", "lost", "none", "gone.txt", long, "", "a.txt")
    assert [result.reason for result in rejections] == [
        *("not a file", "not a file", "unreadable", "empty", "missing", "missing", "missing")
    ]
    assert "docs/*.md" in rejections[4].detail
    assert document == Document("a.txt", "a")


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.html"])
def test_any_error_of_a_converter_costs_its_file_alone(tmp_path, monkeypatch, name):
    data = {"a.pdf": PDF, "a.docx": DOCX, "a.html": PAGE.encode()}[name]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")

    def raise_error(error):
        def convert(data, kind):
            raise error

        return convert

    monkeypatch.setattr(documents, "_convert", raise_error(RecursionError("too deep")))
    rejection, document = read(tmp_path / name, tmp_path / "b.txt")
    assert rejection.reason == "corrupt" and "RecursionError: too deep" in rejection.detail
    assert document.text == "b"
    monkeypatch.setattr(documents, "_convert", raise_error(MemoryError()))
    with pytest.raises(MemoryError):
        read(tmp_path / name)


def test_converted_text_is_tidy(tmp_path, monkeypatch):
    markdown = "\n\n  a \r\n\n \n\nb\x0cc\ud800\n![](data:image/png;base64...)\n"
    monkeypatch.setattr(documents, "_convert", lambda data, kind: markdown)
    assert read_bytes(tmp_path, "a.pdf", PDF).text == "  a\n\nb\nc?"


@pytest.mark.parametrize("name", ["large.html", "large.docx"])
def test_a_document_too_large_to_convert_is_rejected(tmp_path, monkeypatch, name):
    limit = 2000
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    data = PAGE.encode() * 100 if name == "large.html" else make_docx(PARAGRAPH * 100)
    assert name == "large.html" or len(data) < limit  # it is large only when unpacked
    result = read_bytes(tmp_path, name, data)
    assert (result.reason, "split the file" in result.detail) == ("too long", True)


def test_a_tree_gives_a_document_for_each_visible_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("top/src/b.py", "top/src/a.py", "top/.git/config", "top/build/x.py", "out.pdf"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name, encoding="utf-8")
    Path("out.pdf").write_bytes(PDF)
    Path("top/README.pdf").write_bytes(PDF)
    Path("top/image.png").write_bytes(b"\x89PNG\0")
    Path("top/link.pdf").symlink_to("../out.pdf")
    Path("top/inside.pdf").symlink_to("README.pdf")
    results = read("top")
    assert results == read("./top/") == read(Path("top"))
    texts = [(result.name, result.text) for result in results if isinstance(result, Document)]
    assert texts == [
        ("top/README.pdf", "Ada likes figs."),
        ("top/inside.pdf", "Ada likes figs."),
        ("top/src/a.py", "top/src/a.py"),
        ("top/src/b.py", "top/src/b.py"),
    ]
    rejections = [result for result in results if isinstance(result, Rejection)]
    assert [(result.file, result.reason) for result in rejections] == [
        ("top/build", "skipped"),
        ("top/image.png", "not text"),
        ("top/link.pdf", "not text"),
    ]
    assert read("top/build", "top/.git/config") == [
        Document("top/build/x.py", "top/build/x.py"),
        Document("top/.git/config", "top/.git/config"),
    ]


def test_names_are_as_given_and_patterns_give_what_they_match(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("docs/b.md", "docs/a.md", "docs/x[1].md", "docs/x1.md", "docs/c.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name, encoding="utf-8")

    def names(*paths):
        return [result.name for result in read(*paths)]

    assert names("docs/*.md") == ["docs/a.md", "docs/b.md", "docs/x1.md", "docs/x[1].md"]
    assert names("docs/x[1].md") == ["docs/x[1].md"]  # a name before a pattern
    assert names("**") == names("docs") == names(".") != names("docs/*.md")
    assert names(tmp_path / "docs" / "c.txt") == [f"{tmp_path.as_posix()}/docs/c.txt"]
    assert names("../" + tmp_path.name + "/docs/*.txt") == [f"../{tmp_path.name}/docs/c.txt"]
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x", encoding="utf-8")
    (tmp_path / os.fsdecode(b"caf\xe8.txt")).write_text("x", encoding="utf-8")
    assert names("caf*") == ["caf\\xe8.txt", "caf\\xe9.txt"]


def test_progress_gets_all_files_before_any_is_read(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name, encoding="utf-8")
    calls = []

    def progress(items, label):
        calls.append((len(items), label))
        return items

    assert [document.text for document in read_documents([tmp_path], progress)] == ["a", "b"]
    assert calls == [(2, "reading documents")]


def test_nothing_is_fetched_because_of_what_a_file_says(tmp_path, monkeypatch):
    address = "http://127.0.0.1:9/x.png"

    def connect(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    page = f'<html><img src="{address}"><p>figs'.encode()
    assert "figs" in read_bytes(tmp_path, "a.html", page).text
    docx = read_bytes(tmp_path, "a.docx", make_docx(EXTERNAL_IMAGE + PARAGRAPH, link=address))
    assert "connection" not in str(docx)
    assert docx == Document((tmp_path / "a.docx").as_posix(), "Ada likes figs.")
    assert read(address)[0].reason == "missing"


def test_a_missing_library_is_named_when_a_file_needs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)
    assert read_bytes(tmp_path, "a.txt", b"text").text == "text"
    expected = r"needs markitdown: pip install 'lclm_jax\[documents\]'"
    with pytest.raises(UserError, match=expected):
        read_bytes(tmp_path, "a.pdf", PDF)


def test_documents_are_grouped_by_their_length():
    lengths = [10, 1, 1, 50, 30, 5, 200, 40]
    texts = [Document(str(number), "x" * length) for number, length in enumerate(lengths)]
    rejection = Rejection("odd", 0, "missing", "nothing there")
    groups = list(group_documents([*texts, rejection], shortest=10, longest=60))
    grouped = [[len(item.text) if item is not rejection else 0 for item in g] for g in groups]
    assert grouped == [[10, 1, 1], [50], [30, 5], [200], [40, 0]]
