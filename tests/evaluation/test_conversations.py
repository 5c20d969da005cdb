"""LongHealth, LongMemEval and LoCoMo in their published formats."""

import pytest

from lclm_jax.errors import FileError
from lclm_jax.evaluation.questions import Passage

# --- LongHealth ---


def make_choice(correct="figs", **change):
    options = {f"answer_{letter}": fruit for letter, fruit in zip("abcde", FRUITS, strict=True)}
    return {"No": 0, "question": "What does Ben like?", **options, "correct": correct, **change}


FRUITS = ["pears", "figs", "plums", "limes", 5]
PATIENTS = {
    "patient_01": {
        "name": "Ben",
        "texts": {"text_0": "Dear colleague, figs.", "text_1": "He came back."},
        "questions": [make_choice(), make_choice("5")],
    },
    "patient_02": {"texts": {"text_0": "Nothing."}, "questions": [make_choice("c")]},
}


def test_letters_of_a_patient_are_passages(write, load):
    write("longhealth/benchmark_v5.json", PATIENTS)
    first, second, third = load("longhealth")
    assert first.passages == [Passage("Dear colleague, figs."), Passage("He came back.")]
    assert [question.references for question in (first, second, third)] == [["B"], ["E"], ["C"]]
    assert (first.metric, third.number, third.tags["cluster"]) == ("choice", 2, "patient_02")
    ending = first.contents[0][-1]
    assert ending.startswith("What does Ben like?\n\nA: pears\nB: figs\n") and "E: 5" in ending
    spread = load("longhealth", limit=2)
    assert [(question.number, question.tags["cluster"]) for question in spread] == [
        (0, "patient_01"),
        (2, "patient_02"),
    ]
    assert spread == [first, third] and load("longhealth", limit=5) == [first, second, third]


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        (7, "row 0: expected an object in p, got int 7"),
        ({"texts": {}, "questions": []}, "expected letters in p.texts, got none"),
        ({"texts": {"t": ""}, "questions": []}, "expected text in p.texts.t, got str ''"),
        ({"texts": {"t": "a"}}, "expected a list in p.questions, got nothing"),
        ({"texts": {"t": "a"}, "questions": [make_choice("kiwis")]}, r"p.questions\[0\].correct"),
        (
            {"texts": {"t": "a"}, "questions": [make_choice(answer_d=None)]},
            r"expected text in p.questions\[0\].answer_d, got nothing",
        ),
    ],
)
def test_a_malformed_patient_is_named(write, load, patient, message):
    write("longhealth/benchmark_v5.json", {"p": patient})
    with pytest.raises(FileError, match=message):
        load("longhealth")


# --- LongMemEval ---


def make_memory(**change):
    return {
        "question_id": "a1",
        "question_type": "multi-session",
        "question": "How many figs?",
        "answer": 3,
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_dates": ["2023/05/21 (Sun) 10:00", "2023/05/20 (Sat) 02:21"],
        "haystack_sessions": [
            [{"role": "user", "content": "One more fig.", "has_answer": True}],
            [
                {"role": "user", "content": "Two figs."},
                {"role": "assistant", "content": "Enjoy them."},
            ],
        ],
        **change,
    }


def test_sessions_are_passages_by_date(write, load):
    rows = [
        make_memory(),
        make_memory(question_id="a2_abs", answer="There were no plums."),
        make_memory(question_type="single-session-preference", answer="They would like figs."),
        make_memory(haystack_sessions=[[], [{"role": "user", "content": ""}]]),
    ]
    write("longmemeval/longmemeval_s.json", rows)
    write("longmemeval/longmemeval_oracle.json", rows[:1])
    oracle, first, absent, preference, empty = load("longmemeval")
    assert first.contents[0][:5] == [
        "These are earlier conversations, the oldest first.\n\n",
        "Conversation 1, 2023/05/20 (Sat) 02:21:\n",
        Passage("user: Two figs.\nassistant: Enjoy them."),
        "\n\n",
        "Conversation 2, 2023/05/21 (Sun) 10:00:\n",
    ]
    ending = first.contents[0][-1]
    assert ending.startswith("Today is 2023/05/30 (Tue) 23:40. How many figs?")
    assert (first.task, first.metric, first.references) == ("longmemeval_s", "contains_any", ["3"])
    assert (oracle.task, oracle.number) == ("longmemeval_oracle", 0)
    assert absent.references == ["not mentioned"] and absent.tags["kind"] == "abstention"
    assert absent.references[0] in ending
    assert (preference.task, preference.number) == ("longmemeval_s_preference", 0)
    assert preference.metric == "token_f1"
    assert empty.passages == [Passage("user: ")] and "(no messages)" in empty.contents[0]
    tasks = [question.task for question in load("longmemeval", limit=1)]
    assert tasks == ["longmemeval_oracle", "longmemeval_s", "longmemeval_s_preference"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "row 1: expected text in answer, got nothing"),
        ({"question_date": 5}, "row 1: expected text in question_date, got int 5"),
        ({"haystack_dates": ["2023"]}, "expected a date for each of 2 sessions in haystack_dates"),
        ({"haystack_sessions": [1, 2]}, r"expected a list in haystack_sessions\[0\], got int 1"),
        (
            {"haystack_sessions": [[], [{"content": "a"}]]},
            r"expected text in haystack_sessions\[1\]\[0\].role, got nothing",
        ),
    ],
)
def test_a_malformed_history_is_named(write, load, change, message):
    write("longmemeval/longmemeval_s.json", [make_memory(), make_memory(**change)])
    with pytest.raises(FileError, match=message):
        load("longmemeval")


@pytest.mark.parametrize("name", ["longmemeval/longmemeval_m.json", "locomo/locomo10.json"])
def test_a_list_that_breaks_off_is_named(write, load, name):
    path = write(name, [make_memory(), make_conversation()][:: -1 if "locomo" in name else 1])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileError, match=r"row \d: json: .*download the file again"):
        load(name.partition("/")[0])


# --- LoCoMo ---


def make_conversation(**change):
    conversation = {
        "speaker_a": "Ada",
        "speaker_b": "Ben",
        "session_10": [{"speaker": "Ben", "dia_id": "D10:1", "text": "Bye."}],
        "session_10_date_time": "9:00 am on 2 June, 2023",
        "session_2": [{"speaker": "Ada", "text": "Look!", "blip_caption": "a fig tree"}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_11_date_time": "1:00 pm on 3 June, 2023",
        **change,
    }
    questions = [
        {"question": "What does Ada show?", "answer": "a fig tree", "category": 4},
        {"question": "When?", "answer": 2023, "category": 2},
        {"question": "Where does Ben work?", "adversarial_answer": "a bank", "category": 5},
        {"question": "Does she like figs?", "answer": "Likely; she shows them", "category": 3},
    ]
    return {"sample_id": "conv-1", "conversation": conversation, "qa": questions}


def test_a_conversation_is_read_in_order(write, load):
    write("locomo/locomo10.json", [make_conversation()])
    first, date, adversarial, likely = load("locomo")
    assert first.passages == [
        Passage("Ada: Look! [shares a picture: a fig tree]"),
        Passage("Ben: Bye."),
    ]
    assert "Conversation 2, 9:00 am on 2 June, 2023:\n" in first.contents[0]
    assert [question.task for question in (first, date, likely)] == ["locomo"] * 3
    assert (date.references, likely.references, likely.number) == (["2023"], ["Likely"], 2)
    assert adversarial.task == "locomo_adversarial" and adversarial.metric == "contains_any"
    assert adversarial.references[0] == "not mentioned"
    assert first.tags == {"family": "locomo", "kind": "single-hop", "cluster": "conv-1"}
    assert [question.task for question in load("locomo", limit=1)] == [
        "locomo",
        "locomo_adversarial",
    ]


def test_a_limit_takes_questions_about_all_conversations(write, load):
    write("locomo/locomo10.json", [make_conversation(), {**make_conversation(), "sample_id": "b"}])
    chosen = load("locomo", limit=3)
    assert [(q.task, q.number, q.tags["cluster"]) for q in chosen] == [
        ("locomo", 0, "conv-1"),
        ("locomo", 1, "conv-1"),
        ("locomo_adversarial", 0, "conv-1"),
        ("locomo", 3, "b"),
        ("locomo_adversarial", 1, "b"),
    ]
    assert all(question in load("locomo") for question in chosen)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**make_conversation(), "qa": None}, "row 0: expected a list in qa, got nothing"),
        ({**make_conversation(), "conversation": {}}, "a list of turns in conversation.session_1"),
        (
            make_conversation(session_3=[]),
            "expected text in conversation.session_3_date_time, got nothing",
        ),
        (
            make_conversation(session_2=[{"text": "a"}]),
            r"expected text in conversation.session_2\[0\].speaker",
        ),
        (
            {**make_conversation(), "qa": [{"question": "Who?", "answer": "a", "category": 6}]},
            r"expected one of 1, 2, 3, 4, 5 in qa\[0\].category, got int 6",
        ),
        (
            {**make_conversation(), "qa": [{"question": "Who?", "category": 1}]},
            r"expected text in qa\[0\].answer, got nothing",
        ),
    ],
)
def test_a_malformed_conversation_is_named(write, load, row, message):
    write("locomo/locomo10.json", [row])
    with pytest.raises(FileError, match=message):
        load("locomo")
