"""Questions over HTTP, to a server on the loopback, and to a model in a folder."""

import socket
import threading

import pytest
from tests.labels.chat_server import Reply, chat_server, fails, says
from tests.models import tiny_model

from circuitloom.config.label_model import LabelModel
from circuitloom.labels.model_client import ChatClient, LocalClient, ModelClient, Question, make_client

QUESTION = Question((("1 + 1?", "2"),), "2 + 3?", 7)


def client(endpoint: str, **keys) -> ChatClient:
    return ChatClient(LabelModel(endpoint=endpoint, name="adder", **{"timeout": 5, **keys}), pause=0.01)


def ask(endpoint: str, **keys) -> str | None:
    return client(endpoint, **keys).ask([QUESTION])[0]


def error(endpoint: str, **keys) -> str:
    with pytest.raises(ValueError) as caught:
        ask(endpoint, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_turn(*replies: Reply):
    return lambda _question, number: replies[min(number, len(replies) - 1)]


def test_a_question_is_sent_as_a_chat_completion_with_the_turns_before_it() -> None:
    with chat_server(in_turn(says("5"))) as server:
        assert ask(server.endpoint) == "5"
    assert server.paths == ["/v1/chat/completions"]
    roles = [(message["role"], message["content"]) for message in server.bodies[0]["messages"]]
    assert roles == [("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 3?")]
    assert {key: server.bodies[0][key] for key in ("model", "max_tokens", "temperature")} == {
        "model": "adder", "max_tokens": 7, "temperature": 0,
    }  # fmt: skip
    assert "Authorization" not in server.headers[0]


def test_options_add_replace_and_remove_fields_of_a_request() -> None:
    with chat_server(in_turn(says("5"))) as server:
        ask(server.endpoint, options={"max_tokens": None, "max_completion_tokens": 900, "temperature": 1})
    body = server.bodies[0]
    assert (body["max_completion_tokens"], body["temperature"]) == (900, 1)
    assert "max_tokens" not in body


def test_a_complete_address_is_used_as_it_is() -> None:
    with chat_server(in_turn(says("5"))) as server:
        ask(f"{server.endpoint}/chat/completions?version=2")
    assert server.paths == ["/v1/chat/completions?version=2"]


def test_the_key_is_read_from_the_environment_and_sent(monkeypatch) -> None:
    monkeypatch.setenv("ADDER_KEY", "secret-1\n")
    with chat_server(in_turn(says("5"))) as server:
        ask(server.endpoint, key_variable="ADDER_KEY")
    assert server.headers[0]["Authorization"] == "Bearer secret-1"


def test_a_missing_key_is_reported_before_anything_is_asked(monkeypatch) -> None:
    monkeypatch.delenv("ADDER_KEY", raising=False)
    assert "ADDER_KEY is not set" in error("http://127.0.0.1:9", key_variable="ADDER_KEY")


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(monkeypatch) -> None:
    monkeypatch.setenv("ADDER_KEY", "sécret\nkey")
    text = error("http://127.0.0.1:9", key_variable="ADDER_KEY")
    assert "ADDER_KEY" in text and "cret" not in text


def test_a_refused_key_is_not_shown_although_the_server_repeats_it(monkeypatch) -> None:
    monkeypatch.setenv("ADDER_KEY", "secret-2")
    with chat_server(in_turn(fails(401, "wrong key secret-2"))) as server:
        text = error(server.endpoint, key_variable="ADDER_KEY")
    assert "check the key in ADDER_KEY" in text and "wrong key ***" in text and "secret-2" not in text
    assert len(server.bodies) == 1


def test_without_a_key_the_remedy_is_key_variable() -> None:
    with chat_server(in_turn(fails(401, "no key"))) as server:
        assert "name the variable with its key in key_variable" in error(server.endpoint)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with chat_server(in_turn(fails(status), fails(status), says("5"))) as server:
        assert ask(server.endpoint) == "5"
    assert len(server.bodies) == 3


def test_a_server_that_stays_busy_is_named_after_all_attempts() -> None:
    with chat_server(in_turn(fails(500, "no memory"))) as server:
        text = error(server.endpoint, attempts=3)
    assert server.endpoint in text and "status 500: no memory" in text and "3 attempts" in text
    assert len(server.bodies) == 3


def test_the_wait_that_a_server_asks_for_replaces_the_own_one(monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("circuitloom.labels.model_client.time.sleep", waits.append)
    with chat_server(
        in_turn(fails(429, Retry_After="7"), fails(429, Retry_After="1e9"), fails(429), says("5"))
    ) as server:
        ask(server.endpoint)
    assert waits == [7, 60, 0.04]


def test_a_timeout_is_named_after_all_attempts() -> None:
    release = threading.Event()

    def late(_question: str, _number: int) -> Reply:
        release.wait(10)
        return says("5")

    with chat_server(late) as server:
        text = error(server.endpoint, timeout=0.05, attempts=2)
        release.set()
    assert "gives no answer in 0.05 s" in text and len(server.bodies) == 2


def test_an_address_where_no_server_listens_is_reported_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = error(f"http://127.0.0.1:{port}/v1")
    assert "cannot be reached" in text and "start the server, or correct endpoint" in text


@pytest.mark.parametrize(
    "content",
    [b"<html>hello</html>", b'{"choices": []}', b'{"choices": [{"message": {"content": 5}}]}', b"[1]"],
)
def test_an_answer_that_is_no_chat_completion_is_named(content: bytes) -> None:
    with chat_server(in_turn((200, content, {}))) as server:
        text = error(server.endpoint, attempts=2)
    assert "which is no chat completion" in text and content.decode()[:10] in text
    assert len(server.bodies) == 2


def test_a_wrong_model_is_named() -> None:
    with chat_server(in_turn(fails(404, "The model `adder` does not exist"))) as server:
        assert "no model adder" in error(server.endpoint)


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(monkeypatch) -> None:
    monkeypatch.setenv("ADDER_KEY", "secret-3")
    with chat_server(in_turn(says("5"))) as other:
        target = f"{other.endpoint}/chat/completions"
        with chat_server(in_turn(fails(302, Location=target))) as server:
            assert f"redirects to {target}" in error(server.endpoint, key_variable="ADDER_KEY")
    assert other.bodies == []


def test_a_bad_request_names_options() -> None:
    with chat_server(in_turn(fails(400, "max_tokens is not supported"))) as server:
        text = error(server.endpoint)
    assert "max_tokens is not supported" in text and "labels.model.options" in text


@pytest.mark.parametrize(
    "reply", [fails(400, "filtered", "content_filter"), says(None, finish_reason="content_filter")]
)
def test_a_filtered_question_has_no_answer(reply: Reply) -> None:
    with chat_server(in_turn(reply)) as server:
        assert ask(server.endpoint) is None


def test_a_model_in_a_folder_generates_the_likeliest_tokens(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path / "tiny")
    local = make_client(LabelModel(folder=str(folder)))
    assert isinstance(local, LocalClient) and local.place == str(folder)
    questions = [Question((), "w5 w6 w7", 3), Question((), "w9", 3)]
    together = local.ask(questions)
    assert together == [local.ask([each])[0] for each in questions]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("w9\nAnswer:", return_tensors="pt")["input_ids"]
    for _ in range(3):
        with torch.no_grad():
            ids = torch.cat([ids, module(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert together[1] == tokenizer.decode(ids[0, -3:], skip_special_tokens=True).strip()


def test_a_chat_template_is_used_if_there_is_one(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w8{% endif %}"
    )
    local = LocalClient(LabelModel(folder=str(folder)))
    assert local._prompt(QUESTION) == "user 1 + 1? assistant 2 user 2 + 3? w8"
    assert isinstance(local.ask([QUESTION])[0], str)


def test_a_question_that_is_too_long_for_a_model_names_the_remedy(tmp_path) -> None:
    local: ModelClient = LocalClient(LabelModel(folder=str(tiny_model("llama", tmp_path / "tiny"))))
    with pytest.raises(ValueError, match=r"context of 32 tokens.*lower labels.model.examples"):
        local.ask([Question((), "w5 " * 40, 3)])


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="there is no folder /nowhere"):
        LocalClient(LabelModel(folder="/nowhere"))
