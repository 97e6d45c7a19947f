"""Names of tokens that are bytes, and the text that tokens make up together."""

import random
from itertools import pairwise

import pytest

from circuitloom.core.formatting import format_token
from circuitloom.core.token_text import escape_name, name_bytes, whole_text, whole_tokens

LETTERS = "aé߿ࠀ中퟿\ue000\uffff𐀀😀\U0010ffff\x00\n⟨⟩\u0301\u200dש"
"""Characters of one to four bytes, among them the first and the last of each length."""


def pieces(text: str, generator: random.Random) -> list[str]:
    """Names of tokens that are the text's bytes, cut at random places."""
    data = text.encode()
    cuts = sorted({0, len(data), *(generator.randrange(len(data) + 1) for _ in range(len(text)))})
    return [name_bytes(data[start:stop]) for start, stop in pairwise(cuts)]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b" by", " by"),
        ("中".encode(), "中"),
        (b" \xe4\xb8", " ⟨E4⟩⟨B8⟩"),
        (b"\xadx\xe4", "⟨AD⟩x⟨E4⟩"),
        (b"\xc0\x80", "⟨C0⟩⟨80⟩"),
        ("⟨".encode(), "⟨E2⟩⟨9F⟩⟨A8⟩"),
        (b"\xef\xbf\xbd", "\ufffd"),
    ],
)
def test_bytes_that_are_no_character_have_names_of_their_own(data: bytes, name: str) -> None:
    assert name_bytes(data) == name


def test_text_cut_between_any_bytes_is_joined_again() -> None:
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choice(LETTERS) for _ in range(12)) + "⟨E4⟩⟨B8⟩⟨AD⟩"
        assert whole_text("".join(pieces(text, generator))) == text


def test_no_character_is_split_between_groups_of_tokens() -> None:
    generator = random.Random(1)
    for _ in range(300):
        text = "".join(generator.choice(LETTERS) for _ in range(12))
        tokens = pieces(text, generator)
        groups = whole_tokens(tokens)
        assert [place for places, _ in groups for place in places] == list(range(len(tokens)))
        assert "".join(part for _, part in groups) == text
        for places, part in groups:
            # a group of several tokens is held together by characters that are cut
            assert len(places) == 1 or len(part.encode()) > 1


def test_tokens_without_bytes_are_groups_of_their_own() -> None:
    assert whole_tokens([]) == []
    assert whole_tokens(["", " a", ""]) == [(range(1), ""), (range(1, 2), " a"), (range(2, 3), "")]
    assert whole_tokens(["x⟨E4⟩", "⟨B8⟩", "", "⟨AD⟩y", "⟨E4⟩"]) == [(range(4), "x中y"), (range(4, 5), "⟨E4⟩")]


@pytest.mark.parametrize(
    "text",
    [
        *("⟨ED⟩⟨A0⟩⟨80⟩", "⟨C1⟩⟨81⟩", "⟨E0⟩⟨80⟩⟨80⟩", "⟨F0⟩⟨8F⟩⟨BF⟩⟨BF⟩", "⟨F4⟩⟨90⟩⟨80⟩⟨80⟩", "⟨F5⟩⟨80⟩⟨80⟩⟨80⟩"),
        *("⟨B8⟩⟨AD⟩", "⟨#12⟩"),
    ],
)  # fmt: skip
def test_bytes_that_utf_8_forbids_stay_bytes(text: str) -> None:
    assert whole_text(text) == text


def test_a_bracket_is_never_taken_for_a_byte() -> None:
    assert whole_text(escape_name("⟨E4⟩⟨B8⟩⟨AD⟩")) == "⟨E4⟩⟨B8⟩⟨AD⟩"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("⟨E4⟩", "⟨E4⟩"),
        ("⟨E2⟩⟨9F⟩⟨A8⟩", "⟨"),
        (" ⟨41⟩ ", "␣A␣"),
        ("\u0301", "◌\u0301"),
        (" \u0301a", "␣◌\u0301a"),
        ("a\u0301", "a\u0301"),
        ("\u200b", "\\u200b"),
        ("\n\t ", "↵⇥␣"),
        ("שלום", "שלום"),
    ],
)
def test_a_token_is_shown_with_everything_that_is_in_it(token: str, shown: str) -> None:
    assert format_token(token) == shown
