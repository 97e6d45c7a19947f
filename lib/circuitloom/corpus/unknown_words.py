"""Names the word that a tokenizer without an unknown token does not know, and the document in which it stands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizers.models import WordLevel

from .source import Document, Place
from .tokenizer import Tokenizer


class UnknownWordError(ValueError):
    """A document has a word for which the tokenizer has no token."""

    def __init__(self, word: str, place: Place) -> None:
        super().__init__(
            f"the tokenizer does not know {word!r} and has no unknown token; name an unk_token in its tokenizer.json, "
            "or take a tokenizer that knows the words of the text"
        )
        self.place = place


@contextmanager
def named_unknown_words(
    documents: Sequence[Document], tokenizer: Tokenizer, special: bool = False
) -> Iterator[None]:
    """Within the context, which encodes `documents`, the error about an unknown word names the word."""
    try:
        yield
    except ValueError:
        raise
    # tokenizers raises a bare Exception
    except Exception as error:
        for document in documents:
            if not _knows(tokenizer, document.text, special):
                words = dict.fromkeys(document.text.split())
                found = next((word for word in words if not _knows(tokenizer, word, special)), document.text)
                raise UnknownWordError(_piece(tokenizer, found), document.place) from error
        raise


def _knows(tokenizer: Tokenizer, text: str, special: bool) -> bool:
    try:
        tokenizer.encode([text], special)
    except Exception:
        return False
    return True


def _piece(tokenizer: Tokenizer, word: str) -> str:
    """Returns the part of `word` that the tokenizer does not know, if it splits words further."""
    backend = tokenizer.backend
    if not isinstance(backend.model, WordLevel) or backend.pre_tokenizer is None:
        return word
    written = word if backend.normalizer is None else backend.normalizer.normalize_str(word)
    pieces = (piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(written))
    return next((piece for piece in pieces if backend.token_to_id(piece) is None), word)
