"""Asks a language model many questions, and keeps every answer in a journal, so that none is asked twice.

The journal is a file of JSON lines with the key of a question, its text and the answer. It stays when the labels are
written: answers cost time or money, and another number of features or contexts needs most of them again.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from ..core.atomic_io import fingerprint, write_atomically
from ..core.progress import announce, progress
from ..core.run_progress import rough_duration
from .model_client import ModelClient, Question
from .prompts import CHARACTERS_PER_TOKEN

STAGE = "labels"


def count_tokens(questions: Iterable[Question]) -> int:
    """Returns an estimate of the number of tokens of the prompts."""
    return sum(question.n_characters for question in questions) // CHARACTERS_PER_TOKEN


class Journal:
    """The answers in a file."""

    def __init__(self, file: Path, identity: str) -> None:
        """`identity` is that of the model. Answers of other models stay in the file.

        Damaged lines are removed, and counted in `n_damaged`. The last line is incomplete if the process was killed
        while it was written.
        """
        self._file, self._identity = file, identity
        self._answers: dict[str, str | None] = {}
        lines = file.read_bytes().splitlines() if file.is_file() else []
        whole = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
                whole.append(line + b"\n")
        self.n_damaged = len(lines) - len(whole)
        if self.n_damaged:
            write_atomically(file, b"".join(whole))

    def key(self, question: Question) -> str:
        """Returns the key of a question to the model."""
        return fingerprint(
            model=self._identity, messages=question.messages, answer_tokens=question.answer_tokens
        )

    def __contains__(self, question: Question) -> bool:
        """Whether the question was answered."""
        return self.key(question) in self._answers

    def __getitem__(self, question: Question) -> str | None:
        """Returns the answer. Raises KeyError if the question was not answered."""
        return self._answers[self.key(question)]

    def add(self, answered: Sequence[tuple[Question, str | None]]) -> None:
        """Write answers. Returns when they are on the disk."""
        rows = [
            {"key": self.key(question), "question": question.text, "answer": answer}
            for question, answer in answered
        ]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as lines:
            lines.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
            lines.flush()
            os.fsync(lines.fileno())
        self._answers |= {row["key"]: row["answer"] for row in rows}


def ask_all(client: ModelClient, journal: Journal, questions: Sequence[Question], what: str) -> None:
    """Ask the questions that the journal does not answer. `what` describes them for the progress.

    Answers are in the journal as soon as they are there, also if a later question fails. Raises the first error of the
    client, when the questions that are under way have been answered.
    """
    missing = list({journal.key(each): each for each in questions if each not in journal}.values())
    if not missing:
        return
    batches = [missing[start : start + client.batch] for start in range(0, len(missing), client.batch)]
    started, n_answered, told = time.monotonic(), 0, False
    with (
        progress(what, len(questions), "answers", done=len(questions) - len(missing)) as bar,
        ThreadPoolExecutor(client.threads) as threads,
    ):
        waiting: dict[Future[list[str | None]], Sequence[Question]] = {
            threads.submit(client.ask, batch): batch for batch in batches
        }
        try:
            while waiting:
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                _keep(journal, {future: waiting.pop(future) for future in done})
                new = sum(len(future.result()) for future in done)
                n_answered += new
                bar.update(new)
                # earlier, the rate would leave out questions that are answered at the same time
                if not told and client.batch * client.threads <= n_answered < len(missing):
                    seconds = (time.monotonic() - started) / n_answered * len(missing)
                    announce(STAGE, f"{what}: {rough_duration(seconds)}, measured on the first answers")
                    told = True
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            _keep(journal, {future: waiting[future] for future in waiting if not future.cancelled()})


def _keep(journal: Journal, answered: Mapping[Future[list[str | None]], Sequence[Question]]) -> None:
    """Write the answers of the futures that have some."""
    rows = [
        row
        for future, batch in answered.items()
        if future.exception() is None
        for row in zip(batch, future.result(), strict=True)
    ]
    if rows:
        journal.add(rows)
