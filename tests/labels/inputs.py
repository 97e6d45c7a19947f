"""Small texts of words for tests of labels."""

from pathlib import Path

import numpy as np
import zarr

from circuitloom.corpus.tokens import Tokens
from circuitloom.labels.text import LabelText, read_text

BOS = "<bos>"


def make_tokens(documents: list[str], context: int) -> tuple[Tokens, list[str]]:
    """Documents of words, each after a BOS, packed one after the other, and the text of each token id."""
    words = sorted({word for document in documents for word in document.split()})
    strings = [BOS, *words]
    number = {word: i for i, word in enumerate(strings)}
    token = [number[word] for document in documents for word in [BOS, *document.split()]]
    owner = [i for i, document in enumerate(documents) for _ in [BOS, *document.split()]]
    assert len(token) % context == 0
    arrays = (np.array(each).reshape(-1, context) for each in (token, owner))
    token, owner = (zarr.array(each.astype(np.int32)) for each in arrays)
    return Tokens(Path("validation.zarr"), token, owner, 0, 0, len(strings)), strings


def make_text(documents: list[str], context: int) -> LabelText:
    """Documents of words as text for labels."""
    tokens, strings = make_tokens(documents, context)
    return read_text(tokens, len(tokens), strings)


def words_of(text: LabelText, half: str, place: int = 0) -> list[str]:
    """The words at a place of all positions of a half; - outside the document."""
    return [[*text.names, "-"][unit] for unit in getattr(text, half).unit(place).tolist()]
