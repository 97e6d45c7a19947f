"""Questions are asked once, and no answer is lost."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from circuitloom.labels.answers import Journal, ask_all
from circuitloom.labels.model_client import ModelClient, Question

QUESTIONS = [Question((), f"question {i}", 4) for i in range(10)]


class Asked(ModelClient):
    """Counts questions, and answers with a function."""

    identity, place, batch, threads = "m", "here", 1, 3

    def __init__(self, answer: Callable[[str], str | None] = lambda text: f"answer to {text}") -> None:
        self.asked: list[str] = []
        self._answer = answer

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self.asked += [question.text for question in questions]
        return [self._answer(question.text) for question in questions]


def test_answers_are_found_again_and_not_asked_twice(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "answers.jsonl"
    first, second = Asked(), Asked()
    ask_all(first, Journal(file, "m"), [*QUESTIONS[:6], QUESTIONS[0]], "test")
    journal = Journal(file, "m")
    ask_all(second, journal, QUESTIONS, "test")
    assert sorted(first.asked) == [question.text for question in QUESTIONS[:6]]
    assert sorted(second.asked) == [question.text for question in QUESTIONS[6:]]
    assert [journal[question] for question in QUESTIONS] == [f"answer to question {i}" for i in range(10)]


def test_answers_of_another_model_do_not_count_and_stay(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask_all(Asked(), Journal(file, "m"), QUESTIONS, "test")
    other = Journal(file, "another model")
    assert QUESTIONS[0] not in other
    ask_all(Asked(lambda _text: None), other, QUESTIONS, "test")
    assert other[QUESTIONS[0]] is None
    assert Journal(file, "m")[QUESTIONS[0]] == "answer to question 0"


def test_answers_before_and_beside_a_failure_are_kept(tmp_path: Path) -> None:
    file, others = tmp_path / "answers.jsonl", threading.Event()

    def answer(text: str) -> str:
        if text == "question 4":
            assert others.wait(10)
            raise ValueError("the server is gone")
        if text == "question 3":
            others.set()
        return "fine"

    first = Asked(answer)
    with pytest.raises(ValueError, match="the server is gone"):
        ask_all(first, Journal(file, "m"), QUESTIONS, "test")
    journal = Journal(file, "m")
    assert {question.text for question in QUESTIONS if question in journal} == set(first.asked) - {
        "question 4"
    }
    second = Asked()
    ask_all(second, journal, QUESTIONS, "test")
    assert not set(second.asked) & (set(first.asked) - {"question 4"})


def test_a_torn_last_line_is_asked_again_and_the_rest_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask_all(Asked(), Journal(file, "m"), QUESTIONS, "test")
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    journal = Journal(file, "m")
    assert journal.n_damaged == 1
    again = Asked()
    ask_all(again, journal, QUESTIONS, "test")
    assert len(again.asked) == 1
    assert sorted(file.read_bytes().splitlines()) == sorted(content.splitlines())


def test_the_file_shows_question_and_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask_all(Asked(), Journal(file, "m"), QUESTIONS[:1], "test")
    row = json.loads(file.read_text())
    assert (row["question"], row["answer"]) == ("question 0", "answer to question 0")


def test_the_expected_time_is_told_after_the_first_answers(tmp_path: Path, capsys) -> None:
    ask_all(Asked(), Journal(tmp_path / "answers.jsonl", "m"), QUESTIONS, "verdicts")
    assert "verdicts: less than a minute, measured on the first answers" in capsys.readouterr().err
