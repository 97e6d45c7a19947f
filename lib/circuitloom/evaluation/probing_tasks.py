"""Labels of tokens: parts of speech by word lists and suffixes, capitals, numbers, punctuation, beginnings of documents
and ends of phrases, which follow from the text alone; and labels of documents, which a file states.
docs/dictionary_benchmark.md lists the labels."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.token_text import CLOSE, OPEN
from ..corpus.files import FORMATS, DataFile, file_format
from ..corpus.rows import Row
from .held_out import HeldOut

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
"""A number, or letters with apostrophes inside."""
_BYTE = re.compile(f"{OPEN}[0-9A-F]{{2}}{CLOSE}")
_UNKNOWN = re.compile(rf"{OPEN}#\d+{CLOSE}")
_LISTS = {
    "determiner": (
        "a an the this that these those my your his her its our their each every some any no another either neither "
        "both all such"
    ),
    "preposition": (
        "of in on at by for with from to into onto upon over under between among through during before after above "
        "below near against without within across behind beyond along around toward towards about off beside beneath "
        "inside outside until since despite per via"
    ),
    "pronoun": (
        "i you he she it we they me him us them myself yourself himself herself itself ourselves themselves mine yours "
        "hers ours theirs who whom whose somebody someone anybody anyone nobody everyone everybody something anything "
        "nothing everything"
    ),
    "auxiliary": (
        "be am is are was were been being do does did have has had having will would shall should can could may might "
        "must cannot"
    ),
    "conjunction": (
        "and or but nor yet so because although though while whereas if unless when whenever where wherever that than "
        "as whether"
    ),
}
"""Words of closed classes, whatever a word is in its sentence: `that` is a determiner and a conjunction."""
_SUFFIXES = {
    "ends_in_ing": (
        "ing",
        "thing nothing something anything everything king ring sing wing bring string spring during morning evening "
        "ceiling sibling",
    ),
    "ends_in_ed": (
        "ed",
        "need indeed hundred seed feed breed speed shed bleed weed deed exceed proceed succeed freed sacred naked "
        "wicked kindred hatred",
    ),
    "ends_in_ly": (
        "ly",
        "family only fly july italy reply apply supply ally rely ugly holy bully belly jelly early daily friendly "
        "lonely lovely likely",
    ),
    "ends_in_noun_suffix": (
        "(?:tion|sion|ment|ness|ity|ship|hood|ance|ence|ism)",
        "city pity mention question",
    ),
}
"""A pattern of the word's end, which follows at least two letters, and words that have this end by chance."""


def text_tasks(
    held_out: HeldOut, strings: Sequence[str], separate_words: bool
) -> dict[str, Bool[Tensor, " token"]]:
    """Returns the labels of the scored tokens by name. `strings` are the tokenizer's `strings`.

    A word's labels are on its last token, where the model has read it. `separate_words` says that each token is a word
    and blanks lie between tokens.
    """
    word = torch.full(held_out.token.shape, -1)
    # words are numbered: a text has few different ones
    numbers: dict[str, int] = {}
    mark = torch.zeros(held_out.token.shape, dtype=torch.bool)
    for row, (tokens, scored) in enumerate(
        zip(held_out.token.tolist(), held_out.scored.tolist(), strict=True)
    ):
        texts = [_plain(strings, token) if own else "\n" for token, own in zip(tokens, scored, strict=True)]
        for place, found in _words(texts, " " if separate_words else ""):
            word[row, place] = numbers.setdefault(found, len(numbers))
        mark[row] = torch.tensor([_is_punctuation(text) for text in texts])
    word, scored = word[held_out.scored], held_out.scored
    labels = {name: _having(word, numbers, rule) for name, rule in _rules().items()}
    after = torch.zeros_like(mark)
    after[:, :-1] = mark[:, 1:] & scored[:, 1:]
    document = held_out.document[scored]
    first = torch.ones_like(document, dtype=torch.bool)
    first[1:] = document[1:] != document[:-1]
    return labels | {
        "punctuation": mark[scored],
        "before_punctuation": after[scored],
        "first_of_document": first,
    }


def _plain(strings: Sequence[str], token: int) -> str:
    """Returns the text of a token. Bytes that are part of a character become one letter of no word list."""
    text = strings[token] if token < len(strings) else ""
    return _BYTE.sub("ǂ", _UNKNOWN.sub("", text)) if OPEN in text else text


def _words(texts: Sequence[str], spacing: str) -> list[tuple[int, str]]:
    """Returns (index of the last token, word) of each word in a sequence."""
    ends, length = [], 0
    for text in texts:
        length += len(text)
        ends.append(length)
        length += len(spacing)
    found, place = [], 0
    for match in _WORD.finditer(spacing.join(texts)):
        while ends[place] < match.end():
            place += 1
        found.append((place, match[0]))
    return found


def _is_punctuation(text: str) -> bool:
    stripped = text.strip()
    return bool(stripped) and not any(letter.isalnum() for letter in stripped)


def _rules() -> dict[str, Callable[[str], bool]]:
    """Returns a rule for each label of words."""
    return {
        **{name: partial(_is_one_of, frozenset(text.split())) for name, text in _LISTS.items()},
        **{
            name: partial(_ends_in, re.compile(rf"[^\W\d_]{{2,}}{end}"), frozenset(text.split()))
            for name, (end, text) in _SUFFIXES.items()
        },
        "capitalised": lambda word: word[0].isupper(),
        "number": lambda word: word[0].isdigit(),
    }


def _is_one_of(known: Set[str], word: str) -> bool:
    return word.lower() in known


def _ends_in(end: re.Pattern[str], others: Set[str], word: str) -> bool:
    return end.fullmatch(word.lower()) is not None and word.lower() not in others


def _having(word: Tensor, numbers: Mapping[str, int], rule: Callable[[str], bool]) -> Bool[Tensor, " token"]:
    # the last entry is for tokens that end no word, whose number is -1
    fits = torch.tensor([*(rule(each) for each in numbers), False])
    return fits[word]


def document_tasks(held_out: HeldOut, label_of: Mapping[int, str]) -> dict[str, Bool[Tensor, " token"]]:
    """Returns the labels of the scored tokens by value. `label_of` maps documents to their values."""
    document = held_out.document[held_out.scored]
    return {
        value: torch.isin(
            document, torch.tensor([number for number, own in label_of.items() if own == value])
        )
        for value in sorted(set(label_of.values()))
    }


def read_document_values(
    files: Sequence[str], text: str, column: str, documents: Mapping[int, str]
) -> dict[int, str]:
    """Returns the value of `column` of each document whose text is the column `text` of a row of `files`.

    `documents` maps numbers to texts. Raises ValueError if a file cannot be read, or if no document is in the files.
    """
    value_of: dict[str, str] = {}
    for path in files:
        kind = file_format(path)
        if kind is None:
            raise ValueError(f"{path}: such files are not read; name one of {', '.join(sorted(FORMATS))}")
        rows = (DataFile(path, kind, column=name).rows() for name in (text, column))
        for own, value in zip(*rows, strict=True):
            own_text, own_value = (each.text if isinstance(each, Row) else each for each in (own, value))
            if own_text and own_value:
                value_of[own_text] = own_value
    found = {number: value_of[own] for number, own in documents.items() if own in value_of}
    if not found:
        raise ValueError(
            f"no held-out document is in {', '.join(files)}; name the files with the held-out text, and its column"
        )
    return found
