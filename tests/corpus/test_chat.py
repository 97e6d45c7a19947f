"""Chat messages become text by the tokenizer's chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tests.corpus.inputs import bpe, built, section

from circuitloom.core.tables import read_table
from circuitloom.corpus.chat import ChatTemplate
from circuitloom.corpus.json_rows import text_of
from circuitloom.corpus.rows import CHAT_CONTENT, CHAT_KEYS, Row
from circuitloom.corpus.tokenizer import load_hugging_face_tokenizer
from circuitloom.corpus.tokens import open_tokens

TEMPLATE = """{{ bos_token }}{% for message in messages %}<end>{{ message.role }}: {{ message.content | trim }}
{% endfor %}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder of a tokenizer with a chat template. Its special tokens are <s> and <end>."""
    return with_template(bpe(tmp_path_factory.mktemp("chat"), "<s>", "<end>"), TEMPLATE)


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


def chat(number: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"What is {number}?"},
        {"role": "model", "content": f" A number, {number}.\n"},
    ]


CHATS = [chat(number) for number in range(40)]
WANT = [f"<end>user: What is {number}?\n<end>model: A number, {number}.\n" for number in range(40)]


def write(folder: Path, kind: str, chats: list) -> Path:
    path = folder / f"chats.{kind}"
    if kind == "parquet":
        # the columns of tool calls, which some messages have, are null in the others
        rows = [[{**message, "tool_calls": None} for message in messages] for messages in chats]
        pq.write_table(pa.table({"data": [{"chat": row} for row in rows]}), path)
    else:
        path.write_text("".join(json.dumps({"data": {"chat": row}}) + "\n" for row in chats))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_chat_template_writes_the_text_and_its_special_tokens_count(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    keys = {"source": "files", "train": str(write(tmp_path, kind, CHATS)), "messages": "data.chat"}
    corpus = built(tmp_path / "corpus", folder, validation_share=0.3, **keys)
    rows = read_table(corpus / "document.parquet").to_pylist()
    assert {row["text"] for row in rows} <= set(WANT) and len(rows) > 35
    tokens = open_tokens(corpus / "train.zarr")
    stream = tokens.take(slice(0, len(tokens)))[:, 1:].flatten().tolist()
    # one BOS per document, and the special token of each message
    assert stream[:2] == [0, 1]
    (first,) = [row["text"] for row in rows if (row["split"], row["document"]) == ("train", 0)]
    ids = load_hugging_face_tokenizer(str(folder)).hugging_face(first, add_special_tokens=False)["input_ids"]
    assert stream[1 : len(ids) + 1] == ids and stream[len(ids) + 1] == 0


PROBLEMS = {
    "a special token": (
        [{"role": "user", "content": "a<end>b"}],
        "chat has the special token <end> in message 1",
    ),
    "no content": (
        [*chat(1), {"role": "user", "content": None}],
        "chat has no role and content in message 3",
    ),
    "other keys": ([{"from": "user", "value": "a"}], "chat has no role and content in message 1"),
    "no messages": ([], "chat is not a list of messages"),
    "text": ("a", "chat is not a list of messages"),
}


@pytest.mark.parametrize(("messages", "problem"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_messages_that_are_no_chat_say_why(folder: Path, messages: Any, problem: str) -> None:
    template = ChatTemplate(load_hugging_face_tokenizer(str(folder)), "chat")
    row = template(messages)
    assert isinstance(row, Row) and row.problem == problem
    assert template(CHATS[3]) == WANT[3]


def test_what_the_template_refuses_is_not_text(folder: Path, tmp_path: Path) -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    copy = with_template(Path(shutil.copytree(folder, tmp_path / "strict")), strict)
    row = ChatTemplate(load_hugging_face_tokenizer(str(copy)), "chat")(CHATS[0])
    assert (
        isinstance(row, Row) and row.problem == "chat does not fit the chat template (roles must alternate)"
    )


def test_a_template_with_the_date_of_today_is_refused_unless_the_date_can_be_set(
    folder: Path, tmp_path: Path
) -> None:
    today = "{{ strftime_now('%d %b %Y') }}"
    copy = with_template(Path(shutil.copytree(folder, tmp_path / "dated")), today)
    with pytest.raises(ValueError, match=r"corpus.messages: the chat template writes the date of today"):
        ChatTemplate(load_hugging_face_tokenizer(str(copy)), "chat")
    with_template(copy, "{% if date_string is defined %}{{ date_string }}{% else %}" + today + "{% endif %}")
    row = ChatTemplate(load_hugging_face_tokenizer(str(copy)), "chat")(CHATS[0])
    assert row == Row("26 Jul 2024", remarks=(CHAT_CONTENT,) * 2)


def rendered(folder: Path, target: Path, template: str, messages: list) -> str | Row:
    copy = with_template(Path(shutil.copytree(folder, target)), template)
    return ChatTemplate(load_hugging_face_tokenizer(str(copy)), "chat")(messages)


USER_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content | trim }}\n{% endif %}{% endfor %}"
)
THOUGHTS = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
LOST = {
    "roles that the template does not know": (
        USER_ONLY,
        [("system", "S"), ("user", " a \n"), ("User", "b")],
        2,
    ),
    "the same content twice": (USER_ONLY, [("user", "yes"), ("tool", "yes")], 1),
    "a content that is part of another": (USER_ONLY, [("user", "yes, sir"), ("tool", "yes")], 1),
    "thoughts": (THOUGHTS, [("user", "a"), ("model", "<think>b</think>c")], 1),
    "nothing": (USER_ONLY, [("user", "a"), ("user", "a"), ("model", " ")], 0),
}


@pytest.mark.parametrize(("template", "messages", "lost"), LOST.values(), ids=LOST.keys())
def test_messages_that_the_template_leaves_out_are_counted(
    folder: Path, tmp_path: Path, template: str, messages: list, lost: int
) -> None:
    row = rendered(folder, tmp_path / "a", template, [{"role": r, "content": c} for r, c in messages])
    assert (row.remarks if isinstance(row, Row) else ()) == (CHAT_CONTENT,) * lost


def test_keys_that_the_template_does_not_read_are_counted(folder: Path, tmp_path: Path) -> None:
    calls = {"tool_calls": [{"name": "f"}], "name": None}
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "", **calls}]
    assert rendered(folder, tmp_path / "a", USER_ONLY, messages) == Row("Q: a\nQ: \n", remarks=(CHAT_KEYS,))
    assert rendered(folder, tmp_path / "b", USER_ONLY + "{{ messages[1].tool_calls[0].name }}", messages) == (
        "Q: a\nQ: \nf"
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lost_messages_are_a_notice_with_the_first_row(folder: Path, tmp_path: Path, kind: str) -> None:
    copy = with_template(Path(shutil.copytree(folder, tmp_path / "users")), USER_ONLY)
    chats = write(tmp_path, kind, CHATS)
    keys = {"source": "files", "train": str(chats), "messages": "data.chat", "validation_share": 0.3}
    rows = read_table(built(tmp_path / "corpus", copy, **keys) / "notice.parquet").to_pylist()
    (found,) = [row for row in rows if row["kind"] == CHAT_CONTENT]
    unit = "line" if kind == "jsonl" else "row"
    assert found["count"] == 40 and found["message"] == (
        "chat messages whose content the chat template leaves out or changes: 40 "
        f"(the first: {chats}, {unit} 1)"
    )


STARTS = {
    "a line break before BOS": (
        "\n{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "\nab",
    ),
    "words before BOS": ("Word{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "Wordab"),
    "BOS of each message": ("{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}", "a<s>b"),
    "BOS of later messages": (
        "{% for m in messages %}{% if not loop.first %}{{ bos_token }}{% endif %}{{ m.content }}{% endfor %}",
        "a<s>b",
    ),
}


@pytest.mark.parametrize(("template", "want"), STARTS.values(), ids=STARTS.keys())
def test_the_bos_of_the_template_is_the_bos_of_the_document(
    folder: Path, tmp_path: Path, template: str, want: str
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert rendered(folder, tmp_path / "a", template, messages) == want


def test_half_of_a_surrogate_pair_in_a_lost_message_is_no_text(folder: Path, tmp_path: Path) -> None:
    copy = with_template(Path(shutil.copytree(folder, tmp_path / "a")), USER_ONLY)
    chat = ChatTemplate(load_hugging_face_tokenizer(str(copy)), "chat")
    messages = [{"role": "user", "content": "\ud800"}, {"role": "tool", "content": "b"}]
    (row,) = text_of("chat", [{"chat": messages}], chat)
    assert isinstance(row, Row) and row.text is None and "half of a surrogate pair" in row.problem


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    keys = {"source": "files", "train": str(write(tmp_path, "jsonl", CHATS)), "messages": "data.chat"}
    with pytest.raises(
        ValueError, match=r"corpus.messages: the tokenizer has no chat template; name a tokenizer"
    ):
        built(tmp_path / "corpus", tokenizer, **keys)


def test_a_column_of_messages_must_exist_and_hold_messages(folder: Path, tmp_path: Path) -> None:
    keys = {"source": "files", "train": str(write(tmp_path, "parquet", CHATS))}
    with pytest.raises(ValueError, match=r"corpus.messages: .* has no column chat; set it to one of data"):
        built(tmp_path / "corpus", folder, messages="chat", **keys)
    with pytest.raises(
        ValueError, match=r"corpus.messages: .*: column data is struct<.*>, not a list of role and"
    ):
        built(tmp_path / "corpus", folder, messages="data", **keys)
    with pytest.raises(ValidationError, match="text and messages are both set; leave one of them out"):
        section(messages="chat", text="body", **keys)
