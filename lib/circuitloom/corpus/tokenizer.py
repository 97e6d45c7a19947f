"""Tokenizers: chronicle's word tokenizer, or the tokenizer of a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from ..core.errors import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<bos>"
"""Text of chronicle's BOS (beginning-of-sequence token). The BOS has id 0."""


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer that adds no special tokens."""

    hugging_face: "PreTrainedTokenizerFast"

    @property
    def bos_id(self) -> int | None:
        """Id of the BOS, which may be 0. None if the tokenizer has no BOS."""
        return _id(self.hugging_face.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        """Id of the EOS (end-of-sequence token). None if the tokenizer has no EOS."""
        return _id(self.hugging_face.eos_token_id)

    @cached_property
    def vocabulary(self) -> int:
        """Vocabulary size: the largest token id plus 1."""
        return max(self.hugging_face.get_vocab().values()) + 1

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenization rules, the vocabulary, and the ids of BOS and EOS."""
        text = f"{self.hugging_face.backend_tokenizer.to_str()} {self.bos_id} {self.eos_id}"
        return sha256(text.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " token"]]:
        """Returns the token ids (int32) of each text, without BOS or EOS."""
        encodings = self.hugging_face.backend_tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def offsets(self, text: str) -> Int[np.ndarray, "token 2"]:
        """Returns offsets[token] = (start, end), as character indices in `text`. The end is exclusive."""
        encoding = self.hugging_face.backend_tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def strings(self) -> list[str]:
        """Returns strings[token id]. A string may begin with a space. Strings of unused ids are empty."""
        backend = self.hugging_face.backend_tokenizer
        ids = self.hugging_face.get_vocab()
        strings = [""] * self.vocabulary
        for token, number in ids.items():
            if backend.decoder is None:
                strings[number] = token
            else:
                # some decoders drop a space at the start of a text, so the token is decoded once and as a pair, and
                # the part that the pair adds is used
                once, twice = (backend.decoder.decode([token] * n) for n in (1, 2))
                strings[number] = twice[len(once) :] or token
        return strings

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`."""
        self.hugging_face.save_pretrained(folder)


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """Load a tokenizer from the folder `name`, or from the hub repository `name`.

    Raises ValueError if the tokenizer cannot be loaded, or if it has no tokenizer.json.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    is_path = name.startswith(("/", ".", "~")) or Path(name).exists()
    if is_path and not Path(name).is_dir():
        raise ValueError(
            f"corpus.tokenizer: {name} is not a folder; name one with a tokenizer, or leave it out"
        )
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", local_files_only=is_path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        remedy = "" if is_path else "; if the hub is not reachable, name a local folder"
        raise ValueError(
            f"corpus.tokenizer: {name} has no tokenizer that loads ({reason}){remedy}"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"corpus.tokenizer: {name} has no tokenizer.json; convert it with transformers first"
        )
    # a tokenizer.json may switch on truncation and padding
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return Tokenizer(tokenizer)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Returns a tokenizer that splits text at spaces. The BOS has id 0, and `words` have the ids from 1. Encoding an
    unknown word raises an error."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    backend = Backend(WordLevel({word: number for number, word in enumerate([BOS, *words])}))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS))


def _id(value: Any) -> int | None:
    assert value is None or isinstance(value, int)
    return value
