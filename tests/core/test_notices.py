"""Notices are printed as one line each, and stored in a table."""

from circuitloom.core.notices import Notice, print_notices, write_notices
from circuitloom.core.tables import NOTICE, read_table

BLANK = Notice("train", "blank", 2, "2 documents are blank")
BOS = Notice("tokenizer", "bos", None, "a\nb\x1b[0m")


def test_a_notice_is_one_line_on_the_terminal_whatever_its_text(capsys) -> None:
    print_notices("corpus", [BLANK, BOS])
    first, second = capsys.readouterr().err.splitlines()
    assert first == "circuitloom: corpus: train: 2 documents are blank"
    assert second.startswith("circuitloom: corpus: tokenizer: a") and "\x1b" not in second


def test_notices_are_stored_by_subject_and_kind(tmp_path) -> None:
    write_notices([BLANK, BOS], tmp_path / "notice.parquet")
    rows = read_table(tmp_path / "notice.parquet").to_pylist()
    assert [row["subject"] for row in rows] == ["tokenizer", "train"]
    assert rows[1] == {"subject": "train", "kind": "blank", "count": 2, "message": BLANK.message}
    assert rows[0]["count"] is None and rows[0]["message"] == BOS.message
    write_notices([], tmp_path / "notice.parquet")
    assert read_table(tmp_path / "notice.parquet").schema == NOTICE.schema
