"""Text whose tokens are bytes is shown, searched and counted by characters."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from tests.catalog.tables import write_token_table
from tests.core.test_token_text import LETTERS

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient, open_catalog
from circuitloom.core.layout import Layout
from circuitloom.core.tables import CODE, EXAMPLE, FEATURE, LOGIT, write_table
from circuitloom.core.token_text import name_bytes, whole_text

TEXT = "他说 he was caught 中文书。"
CUTS = [0, 1, 3, 7, 9, 10, 14, 16, 21, 23, 24, 27, 31]
"""Where tokens begin, in bytes of the text: within words, and within characters."""


def tokens_of(text: str, cuts: list[int]) -> list[str]:
    data = text.encode()
    return [name_bytes(data[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(data)], strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("characters") / "study"
    write_token_table(folder, np.array([tokens_of(TEXT, CUTS)], object))
    build_catalog(folder)
    return folder


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_catalog(folder) as connection:
        yield connection


def write_tokenizer(folder: Path, decoder: dict | None) -> None:
    layout = Layout(folder)
    layout.tokenizer.mkdir(parents=True)
    (layout.tokenizer / "tokenizer.json").write_text(json.dumps({"decoder": decoder}))


def ends(catalog: duckdb.DuckDBPyConnection, pattern: str) -> list[int]:
    return [row[1] for row in catalog.execute("FROM tokens_matching(?)", [pattern]).fetchall()]


def test_the_macro_joins_characters_as_the_library_does(catalog) -> None:
    generator = np.random.default_rng(0)
    texts = [
        "".join(name_bytes(bytes(generator.choice([0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xED, 0xF0, 0x9F, 0x98], 12))))
        for _ in range(300)
    ]  # fmt: skip
    texts += [name_bytes(text.encode()[1:]) for text in (LETTERS, TEXT)]
    texts += ["".join(f"⟨{byte:02X}⟩" for byte in LETTERS.encode()), "⟨", "⟨#3⟩ ⟩", "", "plain"]
    found = catalog.execute("SELECT whole_text(unnest(?::VARCHAR[]))", [texts]).fetchall()
    assert [text for (text,) in found] == [whole_text(text) for text in texts]


def test_words_and_characters_are_found_over_the_borders_of_tokens(catalog) -> None:
    tokens = tokens_of(TEXT, CUTS)
    assert whole_text("".join(tokens)) == TEXT and len(set("".join(tokens)) & {"⟨"}) == 1
    stops = [*CUTS[1:], len(TEXT.encode())]
    for wanted in ("he was caught ", "ught 中", "中文", "书", "说 ", "。", "他说 he"):
        end = len(TEXT[: TEXT.index(wanted) + len(wanted)].encode())
        # the token that ends there, maybe with the first byte of the next character
        expected = [i for i, stop in enumerate(stops) if stop in (end, end + (wanted == "书"))]
        assert ends(catalog, wanted) == expected and expected, wanted
        assert [row[1] for row in catalog.execute("FROM search(?)", [wanted]).fetchall()] == expected


def test_a_search_shows_where_the_text_stands(catalog) -> None:
    rows = catalog.sql("SELECT position, text FROM search('中文')").fetchall()
    assert [text.replace("[[", "").replace("]]", "") for _, text in rows] == [TEXT]
    assert "[[文]]" in rows[0][1]
    # the text ends within a token
    assert catalog.sql("SELECT position, text FROM search('caug')").fetchall() == [
        (7, "他说 he was ca[[ught ]]中文书。")
    ]
    # regular expressions are text
    for wanted in ("he (was", ".", "he.was", ""):
        assert catalog.execute("FROM search(?)", [wanted]).fetchall() == [], wanted


def test_every_place_of_a_text_is_found_once(tmp_path: Path) -> None:
    write_token_table(
        tmp_path, np.array([[" a", "a a", " b", " aa", "⟨61⟩"], ["b", " ", "b", "⟨E2⟩", "⟨9F⟩⟨A8⟩"]], object)
    )
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        for wanted, places in {
            "a": [(0, 0), (0, 1), (0, 3), (0, 4)], " a": [(0, 0), (0, 1), (0, 3)], "aaa": [(0, 4)], "b b": [(1, 2)],
            "⟨": [(1, 4)], "a b": [(0, 2)],
        }.items():  # fmt: skip
            rows = catalog.execute("SELECT sequence, position FROM search(?)", [wanted]).fetchall()
            assert rows == places, wanted


def test_the_mark_of_a_token_holds_whole_characters(catalog) -> None:
    ask = "SELECT marked_text(?::VARCHAR[], ?)"
    tokens = ["a", "⟨E4⟩", "⟨B8⟩", "⟨AD⟩b", "⟨E4⟩", " c"]
    assert [catalog.execute(ask, [tokens, place]).fetchall()[0][0] for place in range(6)] == [
        "[[a]]中b⟨E4⟩ c", "a[[中]]b⟨E4⟩ c", "a[[中]]b⟨E4⟩ c", "a[[中b]]⟨E4⟩ c", "a中b[[⟨E4⟩]] c", "a中b⟨E4⟩[[ c]]",
    ]  # fmt: skip


def test_long_texts_of_bytes_are_searched_to_their_end(tmp_path: Path) -> None:
    data = ("😀" * 400 + "中").encode()
    write_token_table(tmp_path, np.array([[name_bytes(bytes([byte])) for byte in data]], object))
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        assert ends(catalog, "中") == [1602]
        assert ends(catalog, "😀{99}中") == [1602]
        assert ends(catalog, "😀{100}中") == []
        assert ends(catalog, "^😀") == [3]
        found = catalog.execute("SELECT position FROM search(?)", ["😀" * 150 + "中"]).fetchall()
        assert found == [(1602,)]
        assert ends(catalog, "^😀{100}") == [399]


@pytest.mark.parametrize(("decoder", "spacing"), [(None, " "), ({"type": "ByteLevel"}, "")])
def test_the_tokenizer_says_whether_blanks_stand_between_tokens(
    tmp_path: Path, decoder, spacing: str
) -> None:
    # no token has a blank or a byte
    write_token_table(tmp_path, np.array([["中", "文"]], object))
    write_tokenizer(tmp_path, decoder)
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        assert catalog.sql("SELECT spacing()").fetchall() == [(spacing,)]
        assert ends(catalog, "中 ?文") == [1]


def test_tokens_with_bytes_are_not_taken_for_words(folder: Path, tmp_path: Path) -> None:
    write_token_table(tmp_path, np.array([["中", "⟨E4⟩"]], object))
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        assert catalog.sql("SELECT spacing()").fetchall() == [("",)]


def test_tokens_of_the_same_text_are_counted_apart(tmp_path: Path) -> None:
    # ids 5 and 6 have the same text
    tokens = np.array([["x", "x", "x", "y", "y"]], object)
    write_token_table(tmp_path, tokens, np.array([[5, 6, 6, 7, 7]]))
    row = dict.fromkeys(EXAMPLE.columns) | {"run": "r", "layer": 0, "feature": 1, "band": 0, "sequence": 0}
    examples = [{**row, "rank": place, "position": place} for place in range(5)]
    write_table(EXAMPLE, examples, tmp_path / "features" / "r" / "layer0" / "example.parquet")
    build_catalog(tmp_path)
    assert CatalogClient(tmp_path).words("r", [(0, 1)]) == {(0, 1): ["x", "y", "x"]}


def test_features_are_found_by_characters_within_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, {"type": "ByteLevel"})
    write_token_table(tmp_path, np.array([["中文书", "他", "中", "文书"]], object))
    code = {"run": "r", "layer": 0, "sequence": 0, "packed": b"\0\1", "n_features": 1}
    rows = [{**code, "position": position} for position in (0, 1)]
    write_table(CODE, rows, tmp_path / "features" / "r" / "layer0" / "code.parquet")
    feature = dict.fromkeys(FEATURE.columns) | {"run": "r", "layer": 0, "feature": 1, "n_tokens": 2}
    write_table(FEATURE, [feature], tmp_path / "features" / "r" / "layer0" / "feature.parquet")
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        ask = "SELECT n_hits, recall FROM features_on(?)"
        # no token ends with 中文: the text ends in tokens 0 and 3
        assert catalog.execute(ask, ["中文"]).fetchall() == [(1, 0.5)]
        assert catalog.execute(ask, ["书"]).fetchall() == [(1, 0.5)]
        assert catalog.execute(ask, ["他"]).fetchall() == [(1, 1)]


def test_features_that_raise_a_character_are_found_by_the_character(tmp_path: Path) -> None:
    row = dict.fromkeys(LOGIT.columns) | {"run": "r", "layer": 0, "sign": 1, "rank": 0, "effect": 1.0}
    rows = [
        {**row, "feature": i, "token": token} for i, token in enumerate((" ⟨E4⟩⟨B8⟩⟨AD⟩", "⟨E4⟩", "\n", "by"))
    ]
    write_table(LOGIT, rows, tmp_path / "features" / "r" / "layer0" / "logit.parquet")
    build_catalog(tmp_path)
    client = CatalogClient(tmp_path)
    for pattern, features in (("中", [0]), ("⟨E4⟩", [1]), ("\n", [2]), (" by ", [3])):
        rows = client.ask("raising", run="r", layer=0, pattern=pattern).rows
        assert [row["feature"] for row in rows] == features, pattern
