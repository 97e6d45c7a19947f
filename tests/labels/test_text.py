"""The held-out text in halves of documents, with what is around each position."""

import numpy as np
import pytest
from tests.labels.inputs import make_text, make_tokens, words_of

from circuitloom.corpus.word_classes import word_classes
from circuitloom.labels.text import BRACKETS, FLAGS, QUOTES, REPEATED, SENTENCE, STARTS, UNKNOWN, read_text

# in sequences of 8, the third document begins in the second and ends with the third
DOCUMENTS = ["a b c d e f g", "( h ) i", "h . j k h l m n o p", "r s t u v w x"]


@pytest.fixture(scope="module")
def text():
    return make_text(DOCUMENTS, 8)


def test_even_documents_are_for_learning_and_odd_ones_for_scoring(text) -> None:
    # position 0 of a sequence is not scored: j of the third document
    assert " ".join(words_of(text, "learning")) == "a b c d e f g h . k h l m n o p"
    assert " ".join(words_of(text, "scoring")) == "( h ) i r s t u v w x"


def test_tokens_around_a_position_are_those_of_its_document_and_sequence(text) -> None:
    assert " ".join(words_of(text, "scoring", 1)) == "- ( h ) - r s t u v w"
    assert " ".join(words_of(text, "scoring", -1)) == "h ) i - s t u v w x -"
    assert " ".join(words_of(text, "scoring", 3)) == "- - - ( - - - r s t u"
    # k follows j, on which nothing is scored
    assert " ".join(words_of(text, "learning", 1)) == "- a b c d e f - h j k h l m n o"


def test_near_tokens_are_the_last_eight_before(text) -> None:
    near = [{[*text.names, "-"][unit] for unit in row} for row in text.scoring.near.tolist()]
    assert near[3] == {"(", "h", ")", "-"}
    assert near[0] == {"-"}


def test_the_place_in_a_document_is_unknown_where_it_began_in_an_earlier_sequence(text) -> None:
    assert text.learning.document_position.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1] + [UNKNOWN] * 7
    assert text.scoring.document_position.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]


def test_a_sequence_that_begins_with_a_bos_may_continue_a_document() -> None:
    tokens, strings = make_tokens(["a b c d", "e f g h i j"], 6)
    # <bos> a b c d <bos>, e f ...: the second sequence gets a BOS of its own, as the corpus stage packs it
    tokens.token[1, 0] = 0
    found = read_text(tokens, 2, strings)
    assert words_of(found, "scoring") == ["f", "g", "h", "i", "j"]
    assert found.scoring.document_position.tolist() == [UNKNOWN] * 5


def test_flags_of_positions(text) -> None:
    learning = text.learning
    assert [
        w for w, flag in zip(words_of(text, "learning"), learning.flags[REPEATED], strict=True) if flag
    ] == []
    assert [
        w for w, flag in zip(words_of(text, "scoring"), text.scoring.flags[BRACKETS], strict=True) if flag
    ] == ["h", ")"]
    quoted = make_text(['x " y z " v w', "a b . c b d e"], 8)
    flags = quoted.learning.flags
    assert [w for w, flag in zip(words_of(quoted, "learning"), flags[QUOTES], strict=True) if flag] == [
        "y",
        "z",
        '"',
    ]
    words, flags = words_of(quoted, "scoring"), quoted.scoring.flags
    assert [w for w, flag in zip(words, flags[SENTENCE], strict=True) if flag] == ["c"]
    assert np.flatnonzero(flags[REPEATED]).tolist() == [4]


def test_one_count_has_all_places_flags_and_starts(text) -> None:
    for half in (text.learning, text.scoring):
        for positions in (None, np.arange(0, len(half), 2)):
            units, flags, starts = half.count(positions)
            chosen = slice(None) if positions is None else positions
            for row, place in enumerate((0, 1, 2, 3, 4, -1)):
                expected = np.bincount(half.unit(place)[chosen], minlength=len(text.names) + 1)[:-1]
                assert units[row].tolist() == expected.tolist()
            near = np.bincount(half.near[chosen].ravel(), minlength=len(text.names) + 1)[:-1]
            assert units[-1].tolist() == near.tolist()
            assert flags.tolist() == [int(half.flags[name][chosen].sum()) for name in FLAGS]
            assert starts.tolist() == [int((half.document_position[chosen] < n).sum()) for n in STARTS]


def test_tokens_that_differ_in_the_space_before_them_are_one_unit() -> None:
    tokens, strings = make_tokens(["a b c", "d e f"], 4)
    found = read_text(tokens, 2, [strings[0], "a", " a", "a\n", "  ", "\t", "d"])
    assert list(found.names) == ["<bos>", "a", "a⏎", "d", "space", "⇥"]
    assert words_of(found, "learning") == ["a", "a", "a⏎"]


def test_word_classes() -> None:
    texts = [
        "the",
        "The",
        "of",
        "12",
        "1987",
        "7",
        "(",
        "Paris",
        "USA",
        "running",
        "singing",
        "walk",
        ".",
        "'",
        "\n",
    ]
    found = word_classes(texts, affix_types=2)

    def members(name: str) -> list[str]:
        return [text for text, inside in zip(texts, found[name], strict=True) if inside]

    assert members("articles") == ["the", "The"]
    assert members("numbers") == ["12", "1987", "7"]
    assert members("capitalised words") == ["The", "Paris"]
    assert members("punctuation") == ["(", ".", "'"]
    assert members("words in -ing") == ["running", "singing"]
    # one member is no class, and equal classes are one
    assert not {"years", "closing brackets", "words in capitals", "words in -ng"} & set(found)
