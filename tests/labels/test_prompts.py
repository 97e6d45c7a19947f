import pytest

from circuitloom.labels.prompts import MarkedText, label_question, read_label, read_verdict, verdict_question


def test_marks_stand_around_tokens_and_not_around_the_spaces_before_them() -> None:
    text = MarkedText(["The", " cat", " sat"], [False, True, False])
    assert text.text("") == "The [[cat]] sat"
    assert MarkedText(["the", "cat"], [True, True]).text(" ") == "[[the]] [[cat]]"


def test_line_breaks_and_parts_of_characters_are_readable() -> None:
    assert MarkedText(["a", "\n", "⟨C3⟩", "⟨A9⟩"], [False, True, False, True]).text("") == "a[[⏎]][[é]]"


def test_a_mark_of_a_blank_token_is_kept() -> None:
    assert MarkedText(["a", "  ", "b"], [False, True, False]).text("") == "a[[  ]]b"


def test_the_question_for_a_label_shows_strengths_marks_and_promoted_tokens() -> None:
    question = label_question([MarkedText(["he", "was"], [False, True], 7)], [" by", " with"], " ")
    assert question.text.splitlines()[:2] == [
        "7: he [[was]]",
        "It makes these next tokens more likely: by, with",
    ]
    assert "more likely" not in label_question([MarkedText(["a"], [True], 1)], [], " ").text


def test_the_question_for_a_verdict_shows_the_label_and_one_mark() -> None:
    question = verdict_question("years", MarkedText(["in", "1810"], [False, True]), " ")
    assert question.text.splitlines()[:2] == ["Description: years", "Text: in [[1810]]"]
    assert question.plain.endswith("yes or no.\nAnswer:")
    assert [message["role"] for message in question.messages] == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("years after *in*.", "years after *in*"),
        ('"the word was"\nbecause it is marked', "the word was"),
        ("<think>hm, maybe\nno</think>\n\nDescription: the word was", "the word was"),
        ("The feature is active on verbs in the past", "verbs in the past"),
        ("**verbs**", "verbs"),
        ("[[was]] after [[he]]", "was after he"),
        ("sorrow and pity", "sorrow and pity"),
        ("I'm sorry, but I cannot help with that.", None),
        ("Sorry, no", None),
        ("I cannot say", None),
        ("  \n", None),
        ("<think>not finished", "<think>not finished"),
        (None, None),
    ],
)
def test_labels_are_read_from_the_first_line_of_an_answer(answer: str | None, label: str | None) -> None:
    assert read_label(answer) == label


def test_a_long_label_is_cut() -> None:
    assert len(read_label("word " * 100) or "") == 200


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("yes", True), (" Yes.", True), ("**No**", False), ("Answer: no", False), ("No, it is not", False),
        ("<think>yes or no?</think>\nno", False), ("nothing", None), ("maybe yes", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_only_answers_that_begin_with_yes_or_no_are_verdicts(
    answer: str | None, verdict: bool | None
) -> None:
    assert read_verdict(answer) is verdict
