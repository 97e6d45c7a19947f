"""Names of tokens: all different, bytes where a token is part of a character, and the text where it is not."""

import numpy as np
import pytest
from tests.corpus.inputs import bpe
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from circuitloom.core.token_text import whole_text
from circuitloom.corpus.token_names import BYTE_OF_LETTER, token_name, token_names
from circuitloom.corpus.tokenizer import Tokenizer, load_tokenizer, word_tokenizer

TEXT = "he was caught 中文 привет 😀👩\u200d💻 é\u0301 שלום ⟨E4⟩ a\tb\n\x00"


def with_byte_fallback(*pieces: str) -> Backend:
    """A tokenizer like those of SentencePiece models: words begin with ▁, unknown characters become bytes."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *pieces]
    backend = Backend(
        models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    backend.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def joined(backend: Backend, text: str) -> str:
    """The text of all tokens of `text`, from their names."""
    ids = Tokenizer(backend, None, None).encode([text])[0].tolist()
    return whole_text("".join(token_names(backend)[i] for i in ids))


def test_names_of_a_byte_level_tokenizer_differ_and_join_to_the_text(tmp_path) -> None:
    tokenizer = load_tokenizer(str(bpe(tmp_path)))
    names = tokenizer.strings()
    assert len(set(names)) == len(names)
    assert "\ufffd" not in "".join(names)
    assert {f"⟨{byte:02X}⟩" for byte in range(0x80, 0x100)} <= set(names)
    assert {" ", "\n", "a", "\x00", "<s>"} <= set(names)
    assert joined(tokenizer.backend, TEXT) == TEXT


def test_the_alphabet_of_byte_level_tokenizers_is_that_of_the_library() -> None:
    assert sorted(BYTE_OF_LETTER) == sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for letter in ("a", " ", "\n", "中", "é", "\x00"):
        ((written, _),) = split.pre_tokenize_str(letter)
        assert bytes(BYTE_OF_LETTER[each] for each in written) == letter.encode()


def test_a_byte_token_is_named_by_its_character_unless_another_token_has_this_name() -> None:
    names = token_names(with_byte_fallback("a", "b"))
    assert len(set(names)) == len(names)
    byte = 3
    assert (names[byte + 0x0A], names[byte + ord("c")], names[byte + 0xE4]) == ("\n", "c", "⟨E4⟩")
    assert (names[byte + ord("a")], names[names.index("a")]) == ("⟨61⟩", "a")
    assert names[byte + 0x20] == "⟨20⟩" and names[byte + 256] == " "


def test_names_of_a_tokenizer_with_byte_fallback_join_to_the_text() -> None:
    assert joined(with_byte_fallback("a", "中", "h", "e"), TEXT) == " " + TEXT


def test_of_tokens_with_the_same_text_the_one_that_the_tokenizer_gives_keeps_it() -> None:
    backend = Backend(models.BPE({"Ġ": 0, "a": 1, "ĠĠ": 2}, [("Ġ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    # as in the tokenizer of Pythia
    backend.add_tokens([AddedToken("  ", normalized=False)])
    assert backend.encode("a  a").ids == [1, 3, 1]
    assert token_names(backend) == [" ", "a", "  ⟨#2⟩", "  "]


def test_ids_without_a_token_are_numbered() -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    assert token_names(backend) == ["a", "⟨#1⟩", "⟨#2⟩", "b"]
    assert [token_name(token_names(backend), i) for i in (3, 4)] == ["b", "⟨#4⟩"]


def test_words_with_a_bracket_are_no_bytes() -> None:
    tokenizer = word_tokenizer(["⟨E4⟩", "by"])
    assert whole_text(" ".join(tokenizer.strings())) == "<bos> ⟨E4⟩ by"


@pytest.mark.parametrize("special", [False, True])
def test_special_tokens_in_a_text_are_text_unless_asked_for(tmp_path, special: bool) -> None:
    tokenizer = load_tokenizer(str(bpe(tmp_path, "<s>", "</s>")))
    text = "a <s>30</s>"
    ids = tokenizer.encode([text], special)[0].tolist()
    assert ({0, 1} <= set(ids)) is special and (not {0, 1} & set(ids)) is not special
    assert whole_text("".join(tokenizer.strings()[i] for i in ids)) == text
    assert len(tokenizer.offsets(text, special)) == len(ids)
    assert tokenizer.fingerprint == load_tokenizer(str(tmp_path)).fingerprint


def test_a_split_of_digits_is_kept(tmp_path) -> None:
    # the state that makes special tokens text changes no other rule
    backend = Backend(models.WordLevel({"1": 0, "2": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d"), "isolated")  # type: ignore[assignment]
    tokenizer = Tokenizer(backend, None, None)
    assert np.array_equal(tokenizer.encode(["12"])[0], tokenizer.encode(["12"], special=True)[0])
