"""Turns chat messages into text with the chat template of a tokenizer."""

import re
from typing import Any

from jinja2 import TemplateError

from ..core.errors import first_line
from .rows import CHAT_CONTENT, CHAT_KEYS, Row, not_text
from .tokenizer import Tokenizer

_DATE = "26 Jul 2024"
"""Date that templates of Llama 3 write if they do not know today's date."""


class ChatTemplate:
    """Writes messages as text. BOS and EOS are left out where packing adds them.

    A template may leave out messages, such as those of a role that it does not know. They are counted by remarks.
    """

    def __init__(self, tokenizer: Tokenizer, column: str) -> None:
        """Raises ValueError if the tokenizer has no chat template, or one that writes the date of today.

        `column` is the name of the messages, for error messages.
        """
        self._column = column
        self._tokenizer = tokenizer.hugging_face
        try:
            self.source = "" if self._tokenizer is None else self._tokenizer.get_chat_template()
        except ValueError:
            self.source = ""
        if self._tokenizer is None or not self.source:
            raise ValueError(
                "corpus.messages: the tokenizer has no chat template; name a tokenizer that has one in "
                "corpus.tokenizer, or write the messages as text and name it in corpus.text"
            )
        if "strftime_now" in self.source and "date_string" not in self.source:
            raise ValueError(
                "corpus.messages: the chat template writes the date of today, so that the text would change every "
                "day; use a copy of the tokenizer whose chat_template has a fixed date"
            )
        self._keys: dict[str, Any] = {"date_string": _DATE} if "date_string" in self.source else {}
        has_bos = tokenizer.bos_id is not None
        self._start = str(self._tokenizer.bos_token) if has_bos else ""
        self._end = str(self._tokenizer.eos_token) if not has_bos and tokenizer.eos_id is not None else ""
        added = tokenizer.backend.get_added_tokens_decoder().values()
        special = "|".join(re.escape(token.content) for token in added if token.special)
        self._special = re.compile(special or "(?!)")

    def __call__(self, messages: Any) -> str | Row:
        """Returns the text of a list of messages. Returns a `Row` that is not text if they do not fit the template."""
        assert self._tokenizer is not None
        if problem := self._problem(messages):
            return not_text(f"{self._column} {problem}")
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, **self._keys)
        # templates check the messages by any means
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            return not_text(f"{self._column} does not fit the chat template ({first_line(error)})")
        assert isinstance(text, str)
        remarks = (CHAT_CONTENT,) * _lost(messages, text)
        remarks += (CHAT_KEYS,) * sum(map(self._has_other_keys, messages))
        text = self._without_start(text, messages).removesuffix(self._end)
        return Row(text, remarks=remarks) if remarks else text

    def _without_start(self, text: str, messages: list[dict[str, Any]]) -> str:
        """Returns `text` without the BOS before the first message. The template may write something before it."""
        if not self._start or self._start not in text:
            return text
        before, _, after = text.partition(self._start)
        contents = (message["content"].strip() for message in messages)
        return text if any(content and content in before for content in contents) else before + after

    def _has_other_keys(self, message: dict[str, Any]) -> bool:
        """Whether a message has values, such as tool calls, of keys that do not occur in the template."""
        return any(
            value and key not in self.source
            for key, value in message.items()
            if key not in ("role", "content")
        )

    def _problem(self, messages: Any) -> str:
        """Says what is wrong with messages. Returns '' if nothing is."""
        if not isinstance(messages, list) or not messages:
            return "is not a list of messages"
        for number, message in enumerate(messages, 1):
            texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                return f"has no role and content in message {number}"
            # it would become the token, as the template's own tokens do
            if found := self._special.search("\n".join(map(str, texts))):
                return f"has the special token {found[0]} in message {number}"
        return ""


def _lost(messages: list[dict[str, Any]], text: str) -> int:
    """Returns the number of messages whose content is not in `text`."""
    lost = 0
    # the longest first, because a short content may be part of a longer one
    for content in sorted((message["content"].strip() for message in messages), key=len, reverse=True):
        if content:
            before, found, after = text.partition(content)
            text = f"{before}\0{after}" if found else text
            lost += not found
    return lost
