"""Asks a language model questions: over HTTP as OpenAI's chat completions, or a model in a local folder.

Both clients answer a batch of questions, in order. An answer is None if the model refused to answer.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from ..config.label_model import LabelModel
from ..core.errors import first_line

LONGEST_WAIT = 60.0
"""Largest number of seconds between two attempts, whatever the server asks for."""
_BUSY = (408, 429)
_WITHOUT_KEY = (401, 403)
_PATH = "/chat/completions"


@dataclass(frozen=True)
class Question:
    """A question, after turns that show the form of the answer."""

    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs. The first question begins with the instructions."""
    text: str
    answer_tokens: int
    """Largest number of tokens of the answer."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns and the question as chat messages. No message has the role `system`, which some models lack."""
        shown = [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*shown, {"role": "user", "content": self.text}]

    @property
    def plain(self) -> str:
        """The turns and the question as text that a model without a chat template continues with the answer."""
        shown = "".join(f"{question}\nAnswer: {answer}\n\n" for question, answer in self.turns)
        return f"{shown}{self.text}\nAnswer:"

    @property
    def n_characters(self) -> int:
        """Number of characters of the prompt."""
        return len(self.plain)


class ModelClient(ABC):
    """A language model that answers questions."""

    identity: str
    """What determines the answers besides the questions: the model and its settings."""
    place: str
    """Where the model runs, for messages."""
    batch: int
    """Number of questions that `ask` gets at one time."""
    threads: int
    """Number of threads that call `ask`."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """Returns the answers. Raises ValueError, with the place and the remedy, if the model cannot answer."""


def make_client(config: LabelModel) -> ModelClient:
    """Returns the client of the model that `config` names."""
    return ChatClient(config) if config.folder is None else LocalClient(config)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, because the key and the texts go to the stated address only."""

    def redirect_request(self, *_args: Any, **_keys: Any) -> None:
        return None


class _Later(Exception):
    """The server may answer later. `wait` is the number of seconds that it asks for, if any."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ChatClient(ModelClient):
    """A server with OpenAI's chat completions."""

    def __init__(self, config: LabelModel, pause: float = 1.0) -> None:
        """`pause` is the number of seconds after the first failure. It doubles with each further one.

        Raises ValueError if the environment variable of the key is not set.
        """
        assert config.endpoint is not None
        self._config, self._pause = config, pause
        self._key = _read_key(config.key_variable)
        self._opener = urllib.request.build_opener(_NoRedirect)
        parts = urlsplit(config.endpoint)
        path = parts.path.rstrip("/")
        path = path if path.endswith(_PATH) else f"{path}{_PATH}"
        self._url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self.place = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self.identity = json.dumps([config.name, config.options], sort_keys=True)
        self.batch, self.threads = 1, config.concurrency

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """Returns the answers, after up to `attempts` attempts each."""
        return [self._ask(question) for question in questions]

    def _ask(self, question: Question) -> str | None:
        attempts = self._config.attempts
        for attempt in range(1, attempts + 1):
            try:
                return self._send(question)
            except _Later as later:
                if attempt == attempts:
                    self._fail(f"{later} ({attempts} attempts); run again to continue, or raise `attempts`")
                wait = self._pause * 2 ** (attempt - 1) if later.wait is None else later.wait
                time.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _send(self, question: Question) -> str | None:
        body: dict[str, Any] = {
            "model": self._config.name,
            "messages": question.messages,
            "max_tokens": question.answer_tokens,
            "temperature": 0,
            **self._config.options,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps({key: value for key, value in body.items() if value is not None}).encode()
        request = urllib.request.Request(self._url, data, headers)
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except urllib.error.URLError as error:
            self._unreachable(error.reason)
        except (OSError, http.client.HTTPException) as error:
            self._unreachable(error)
        return self._answer(content)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Returns None if a filter refused the question. Raises an error otherwise."""
        with error:
            try:
                content = error.read()
            except (OSError, http.client.HTTPException):
                content = b""
        code, text = _error_of(content)
        said = f"status {error.code}{f': {text}' if text else ''}"
        if error.code == 400 and code == "content_filter":
            return None
        if error.code in _BUSY or error.code >= 500:
            raise _Later(f"answers {said}", _seconds(error.headers.get("Retry-After")))
        if error.code in _WITHOUT_KEY:
            variable = self._config.key_variable
            remedy = (
                f"check the key in {variable}"
                if variable
                else "name the variable with its key in key_variable"
            )
            self._fail(f"refuses the key ({said}); {remedy}")
        if error.code == 404:
            self._fail(
                f"has no such address, or no model {self._config.name} ({said}); correct endpoint or name"
            )
        if 300 <= error.code < 400:
            target = error.headers.get("Location")
            self._fail(f"redirects to {target}, which is not followed; name the final address as endpoint")
        self._fail(f"does not accept the request ({said}); correct it with labels.model.options")

    def _unreachable(self, reason: Any) -> NoReturn:
        if isinstance(reason, TimeoutError):
            raise _Later(f"gives no answer in {self._config.timeout:g} s")
        if isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.HTTPException):
            raise _Later(f"breaks the connection ({first_line(reason)})")
        text = first_line(reason) if isinstance(reason, BaseException) else str(reason)
        self._fail(f"cannot be reached ({text}); start the server, or correct endpoint")

    def _answer(self, content: bytes) -> str | None:
        try:
            choice = json.loads(content)["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            if not isinstance(text, str | None):
                raise TypeError("content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            shown = content[:200].decode("utf-8", "replace")
            raise _Later(f"answers {' '.join(shown.split())!r}, which is no chat completion") from None
        if refusal or choice.get("finish_reason") == "content_filter":
            return None
        # a model that thinks may use up its tokens before it answers
        return text or ""

    def _fail(self, text: str) -> NoReturn:
        line = f"labels.model: {self.place} {text}"
        # servers may repeat the key in their message
        raise ValueError(line.replace(self._key, "***") if self._key else line)


def _read_key(variable: str | None) -> str:
    """Returns the key in an environment variable. Raises ValueError if there is none, or if no header can carry it."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"labels.model.key_variable: the environment variable {variable} is not set; set it to the server's key, "
            "or remove key_variable"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"labels.model.key_variable: {variable} has characters that no key has; set it again"
        )
    return key


def _error_of(content: bytes) -> tuple[str, str]:
    """Returns the code and the message in the body of an error, or its first characters."""
    try:
        error = json.loads(content)["error"]
        found = (
            (str(error.get("code")), str(error["message"])) if isinstance(error, dict) else ("", str(error))
        )
    except (ValueError, KeyError, TypeError):
        found = ("", content[:200].decode("utf-8", "replace"))
    return found[0], " ".join(found[1].split())[:300]


def _seconds(text: str | None) -> float | None:
    """Returns the number of seconds in the header Retry-After. None if it is missing, or is a date."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None


class LocalClient(ModelClient):
    """A language model in a folder, whose answers are generated here, always the likeliest token."""

    def __init__(self, config: LabelModel) -> None:
        """Raises ValueError if transformers cannot load the model or its tokenizer."""
        import torch

        from ..language_model.model import load_causal_lm

        assert config.folder is not None
        folder = Path(config.folder)
        if not folder.is_dir():
            raise ValueError(f"labels.model.folder: there is no folder {folder}; name the model's folder")
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        self._tokenizer = _load_tokenizer(folder)
        self._module = load_causal_lm(folder, dtype).to(device).eval()
        self.place = str(folder)
        files = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
        self.identity = json.dumps(
            [config.source, {name: [each.st_size, each.st_mtime_ns] for name, each in files.items()}]
        )
        self.batch, self.threads = config.concurrency, 1

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """Returns the answers, generated together."""
        import torch

        tokenizer = self._tokenizer
        chat = bool(tokenizer.chat_template)
        texts = [self._prompt(question) if chat else question.plain for question in questions]
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat)
        most = max(question.answer_tokens for question in questions)
        length = given["input_ids"].shape[1]
        context = getattr(self._module.config, "max_position_embeddings", None)
        if context is not None and length + most > context:
            raise ValueError(
                f"labels.model: {self.place} has a context of {context} tokens, and a question has {length}; lower "
                "labels.model.examples, or use a model with a longer context"
            )
        with torch.inference_mode():
            output = self._module.generate(
                **given.to(self._module.device),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        # a model without a chat template goes on with questions of its own
        return [answer if chat else answer.strip().partition("\n")[0] for answer in answers]

    def _prompt(self, question: Question) -> str:
        return self._tokenizer.apply_chat_template(
            question.messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"labels.model.folder: {folder} has no tokenizer that transformers loads ({first_line(error)}); name a "
            "complete folder"
        ) from error
    # the answers of a batch begin at the same place
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
