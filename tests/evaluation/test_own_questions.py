"""Questions of one's own: read with their documents, and errors that name file, row and field."""

import pytest

from lclm_jax.errors import ConfigError, FileError
from lclm_jax.evaluation.questions import Passage
from lclm_jax.evaluation.tasks import TASKS, TaskSettings

LEASE = "The lease ends in 2027."


@pytest.fixture
def documents(tmp_path):
    """The directory of documents, with two of them."""
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "lease.txt").write_text(LEASE, encoding="utf-8")
    (tmp_path / "note.md").write_text("Ada signed.", encoding="utf-8")
    return tmp_path


def row(**fields):
    return {"question": "When?", "answer": "2027", "context": LEASE} | fields


def without(name, **fields):
    return {key: value for key, value in row(**fields).items() if key != name}


def test_a_question_follows_its_document(write, load, documents):
    rows = [
        row(),
        without("context", document="contracts/lease.txt"),
        without("context", document=["note.md", "contracts/lease.txt"], answer=2027),
        without("answer", answers=["2027", "27"], metric="exact"),
    ]
    write("questions.jsonl", rows)
    context, document, several, last = load("questions")
    assert context.messages == document.messages
    assert document.messages[0]["content"] == [Passage(LEASE), " When?"]
    content = ["note.md:\n", Passage("Ada signed."), "\n", "contracts/lease.txt:\n"]
    assert several.messages[0]["content"] == [*content, Passage(LEASE), "\n", " When?"]
    assert (several.references, several.metric) == (["2027"], "contains_any")
    assert (last.references, last.metric) == (["2027", "27"], "exact")
    assert [question.number for question in load("questions")] == [0, 1, 2, 3]
    assert len(load("questions", limit=2)) == 2


@pytest.mark.parametrize(("count", "clustered"), [(9, False), (10, True)])
def test_questions_about_many_documents_are_clustered(count, clustered, write, load):
    write("questions.jsonl", [row(context=f"Text {n % count}.") for n in range(20)])
    tags = [question.tags for question in load("questions")]
    assert len({tag["document"] for tag in tags}) == count
    assert all(("cluster" in tag) == clustered for tag in tags)


@pytest.mark.parametrize(("apart", "clustered"), [(8, False), (9, True)])
def test_questions_that_share_a_document_are_one_cluster(apart, clustered, write, load, tmp_path):
    names = [f"{n:02}.txt" for n in range(apart + 3)]
    for name in names:
        (tmp_path / name).write_text(name, encoding="utf-8")
    joined = [names[2], [names[2], names[1]], [names[1], names[0]], names[0]]
    rows = [without("context", document=name) for name in [*joined, *names[3:]]]
    write("questions.jsonl", rows)
    tags = [question.tags for question in load("questions")]
    assert tags[1]["document"] == "02.txt, 01.txt"
    expected = [names[0]] * 4 + names[3:] if clustered else [None] * len(rows)
    assert [tag.get("cluster") for tag in tags] == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (without("question"), r"row 1: expected text in question, got nothing"),
        (without("answer"), r"row 1: expected text in answer, got nothing"),
        (row(answers=["x"]), r"row 1: expected either an answer or answers in answers"),
        (without("answer", answers=[]), r"row 1: expected at least one text in answers"),
        (without("context"), r"row 1: expected text in document, got nothing"),
        (row(document="note.md"), r"row 1: expected either a context or a document in document"),
        (without("context", document="no.md"), r"row 1: document 'no.md' cannot be read: .*no.md"),
        (without("context", document="contracts"), r"row 1: document 'contracts' cannot be read"),
        (row(metric="f2"), r"row 1: expected one of contains_all, .* in metric, got str 'f2'"),
        ("not a row", r"row 1: "),
    ],
)
def test_a_wrong_row_is_named_with_its_field(wrong, message, write, load, documents):
    file = write("questions.jsonl", [row(), wrong])
    with pytest.raises(FileError, match=f"{file}, {message}"):
        load("questions")


def test_a_file_without_questions_is_named(write, load, tmp_path):
    with pytest.raises(FileError, match=r"questions.jsonl: expected a file of questions"):
        load("questions")
    write("questions.jsonl", [])
    with pytest.raises(FileError, match=r"questions.jsonl"):
        load("questions")
    with pytest.raises(ConfigError, match=r"directory with questions.jsonl"):
        TASKS["questions"](TaskSettings())
