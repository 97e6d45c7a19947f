"""Turns chat messages into text with the chat template of a tokenizer."""

import re
from typing import Any

from jinja2 import TemplateError

from ..core.errors import first_line
from .rows import Row, not_text
from .tokenizer import Tokenizer

_DATE = "26 Jul 2024"
"""Date that templates of Llama 3 write if they do not know today's date."""


class ChatTemplate:
    """Writes messages as text. BOS and EOS are left out where packing adds them."""

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
        return text.removeprefix(self._start).removesuffix(self._end)

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
