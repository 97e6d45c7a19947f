"""Prompts and answers are read as people write them."""

import pytest
from tests.corpus.inputs import bpe
from tests.corpus.test_token_names import with_byte_fallback

from circuitloom.ablation.behaviour import parse_metric
from circuitloom.config.circuits import parse_answer, parse_target
from circuitloom.corpus.prompt_text import blank_between, find_token, read_prompt
from circuitloom.corpus.tokenizer import Tokenizer, load_tokenizer, word_tokenizer

CONTEXT = 64


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    """Has tokens with and without a blank for common words of the generated text."""
    return load_tokenizer(str(bpe(tmp_path_factory.mktemp("bpe"), "<s>", "</s>")))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return word_tokenizer(["he", "was", "caught", "by", "17", "43", ";", "(", "Ⅻ"])


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    backend = with_byte_fallback(*"hewasby.", "▁h", "▁he", "▁w", "▁wa", "▁was", "▁b", "▁by", "by", "中")
    pairs = [
        ("▁", "h"),
        ("▁h", "e"),
        ("▁", "w"),
        ("▁w", "a"),
        ("▁wa", "s"),
        ("▁", "b"),
        ("▁b", "y"),
        ("b", "y"),
    ]
    from tokenizers import models

    backend.model = models.BPE(backend.get_vocab(), pairs, byte_fallback=True, unk_token="<unk>")  # type: ignore[assignment]
    return Tokenizer(backend, 1, 2)


def names(tokenizer: Tokenizer, text: str, **keys) -> list[str]:
    read = read_prompt(text, tokenizer, CONTEXT, **keys)
    return [tokenizer.strings()[i] for i in read.token]


def answer(tokenizer: Tokenizer, text: str, written: str, position: int = -1) -> str:
    return read_prompt(text, tokenizer, CONTEXT).answer(written, position).name


# Prompts


@pytest.mark.parametrize("text", ["<bos> he was", "<bos>he was", " <bos> <bos> he was", "he was"])
def test_a_bos_at_the_start_counts_once(words: Tokenizer, text: str) -> None:
    read = read_prompt(text, words, CONTEXT)
    assert read.token.tolist() == [0, 1, 2]
    assert read.notes == (
        () if text == "he was" else ("the BOS <bos> at the start of the prompt counts once",)
    )


def test_the_text_behind_a_bos_is_kept_as_it_is(byte_level: Tokenizer) -> None:
    assert names(byte_level, "<s> the 3") == names(byte_level, " the 3")
    assert names(byte_level, "<s>the 3") == names(byte_level, "the 3")
    assert names(byte_level, "<s>the 3")[0] == "<s>" and names(byte_level, "<s>the 3").count("<s>") == 1


def test_other_special_tokens_are_text_unless_asked_for(byte_level: Tokenizer) -> None:
    text = "the</s> 3"
    assert "</s>" not in names(byte_level, text) and "".join(names(byte_level, text)) == "<s>" + text
    assert read_prompt(text, byte_level, CONTEXT).notes == (
        "</s> in the prompt is text; special_tokens: true makes it a special token",
    )
    assert names(byte_level, text, special=True).count("</s>") == 1
    assert read_prompt(text, byte_level, CONTEXT, special=True).notes == ()


def test_a_special_token_is_no_word_of_a_prompt_unless_asked_for(words: Tokenizer) -> None:
    with pytest.raises(ValueError, match="does not know the word '<bos>' of the prompt"):
        read_prompt("he <bos> was", words, CONTEXT)
    assert read_prompt("he <bos> was", words, CONTEXT, special=True).token.tolist() == [0, 1, 0, 2]


def test_unknown_words_are_counted() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Backend(WordLevel({"?": 0, "he": 1}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    read = read_prompt("he xx he yy", Tokenizer(backend, None, None), CONTEXT)
    assert read.token.tolist() == [1, 0, 1, 0]
    assert read.notes == ("2 of the 4 tokens of the prompt are unknown to the tokenizer (?)",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "the prompt is empty"),
        ("<bos>", "the prompt has only its first token"),
        ("he ran", "does not know the word 'ran' of the prompt"),
        ("he " * CONTEXT, "the context is 64; shorten it"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(words: Tokenizer, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt(text, words, CONTEXT)


@pytest.mark.parametrize("end", [" ", "\n", " \t", "\u00a0"])
def test_a_blank_at_the_end_of_a_prompt_is_said(byte_level: Tokenizer, end: str) -> None:
    (note,) = read_prompt(f"the 3{end}", byte_level, CONTEXT).notes
    assert note.startswith(f"the prompt ends in {end!r}, behind which the target then follows")
    assert read_prompt(f" the{end}3", byte_level, CONTEXT).notes == ()


def test_a_blank_at_the_end_that_gives_no_token_does_not_matter(words: Tokenizer) -> None:
    read = read_prompt("he was ", words, CONTEXT)
    assert (read.token.tolist(), read.notes) == ([0, 1, 2], ())


# Answers


def test_a_word_is_the_token_that_follows_in_written_text(
    byte_level: Tokenizer, sentencepiece: Tokenizer
) -> None:
    assert {" the", "the"} <= set(byte_level.strings())
    found = read_prompt("Story 3", byte_level, CONTEXT).answer("the")
    assert found.name == " the" == byte_level.strings()[found.token_id]
    assert found.note is not None and "'the' is the token ' the'" in found.note and '"the"' in found.note
    assert (answer(sentencepiece, "he was", "by"), answer(sentencepiece, "he was", '"by"')) == (" by", "by")
    assert answer(sentencepiece, "he was", '" by"') == " by"


@pytest.mark.parametrize(
    ("text", "written", "name"),
    [
        ("Story 3", '"the"', "the"),
        ("Story 3", '" the"', " the"),
        ("Story 3", " the", " the"),
        ("Story ", "the", "the"),
        ("Story 3", '"\\n"', "\n"),
        ("Story 3", '"\\u0020"', " "),
        ("Story 3", ".", "."),
        ("Story 3", "5", "5"),
        ("(", "the", "the"),
        ("Story 3", "</s>", "</s>"),
        ("Story 3", "⟨E4⟩", "⟨E4⟩"),
        ("Story 3", '"\\""', '"'),
    ],
)
def test_answers_are_read_as_written(byte_level: Tokenizer, text: str, written: str, name: str) -> None:
    assert answer(byte_level, text, written) == name


def test_an_answer_as_written_needs_no_note(byte_level: Tokenizer, words: Tokenizer) -> None:
    for written in ('"the"', '" the"', " the", "."):
        assert read_prompt("Story 3", byte_level, CONTEXT).answer(written).note is None
    assert read_prompt("he was caught", words, CONTEXT).answer("by").note is None


@pytest.mark.parametrize("written", ["by", " by", '"by"', '" by"', '"by "'])
def test_blanks_do_not_matter_where_tokens_are_separate_words(words: Tokenizer, written: str) -> None:
    assert answer(words, "he was caught", written) == "by"


def test_words_that_would_be_attached_to_the_prompt_are_found_alone(words: Tokenizer) -> None:
    # written text would have 1743, caught; and (he, which are no words of this vocabulary
    assert answer(words, "he was 17", "43") == "43"
    assert answer(words, "he was caught", ";") == ";"
    assert answer(words, "(", "he") == "he"


def test_the_answer_follows_the_token_at_the_position(byte_level: Tokenizer) -> None:
    read = read_prompt("the(3", byte_level, CONTEXT)
    assert [byte_level.strings()[i] for i in read.token] == ["<s>", "the", "(", "3"]
    assert [read.answer("the", place).name for place in (0, 1, 2, 3)] == ["the", " the", "the", " the"]
    assert read.answer("the", -3).name == " the"


def test_an_answer_of_several_tokens_is_refused_and_the_tokens_named(
    byte_level: Tokenizer, sentencepiece: Tokenizer
) -> None:
    with pytest.raises(
        ValueError, match=r"' zxq' is 4 tokens, ' ', 'z', 'x', 'q'; name one of them in quotes$"
    ) as error:
        answer(byte_level, "Story 3", "zxq")
    assert str(error.value).startswith("'zxq' is not a single token of the vocabulary: ")
    with pytest.raises(ValueError, match=r"""' s' is 2 tokens, ' ', 's'; .* or write "s" for 's' alone"""):
        answer(sentencepiece, "he was", "s")
    with pytest.raises(ValueError, match=r"'文' is 3 tokens, '⟨E6⟩', '⟨96⟩', '⟨87⟩'"):
        answer(sentencepiece, "he was", "文")


def test_an_unknown_answer_is_refused(words: Tokenizer) -> None:
    for written in ("zebra", '"zebra"'):
        with pytest.raises(ValueError, match="'zebra' is not a single token of the vocabulary; name another"):
            answer(words, "he was", written)
    with pytest.raises(ValueError, match="it begins with the token 'caught'"):
        answer(words, "he was", "caughtly")


def test_a_normalized_answer_is_the_token_that_the_tokenizer_makes_of_it() -> None:
    from tokenizers import normalizers

    tokenizer = word_tokenizer(["he", "by"])
    tokenizer.backend.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    assert answer(tokenizer, "he", "BY") == "by"


@pytest.mark.parametrize(
    ("before", "word", "blank"),
    [
        ("he was caught", "by", " "), ("", "by", ""), ("caught ", "by", ""), ("caught\n", "by", ""),
        ("caught", ".", ""), ("caught", ")", ""), ("(", "he", ""), ("caught", "(", " "), ("17", "43", ""),
        ("the 17", "men", " "), ("a", "1", " "), ("中", "文", ""), ("中文。", "他", ""), ("ภาษา", "ไทย", ""),
        ("he", "'s", ""), ('he said "', "I", ""), ('"I", he said', '"', " "), ('"I"', "said", " "),
        ("well-", "known", ""), ("was -", "and", " "), ("$", "5", ""), ("привет", "мир", " "), ("שלום", "עולם", " "),
        ("hello", "😀", " "), ("he", " by", ""), ("«", "oui", ""), ("oui", "»", ""),
    ],
)  # fmt: skip
def test_a_blank_stands_where_written_text_has_one(before: str, word: str, blank: str) -> None:
    assert blank_between(before, word) == blank


def test_tokens_are_found_by_text_and_by_name(words: Tokenizer) -> None:
    assert [find_token(text, words) for text in ("by", " by", "xx", "<bos>")] == [4, 4, None, 0]
    brackets = word_tokenizer(["⟨", "⟨E4⟩"])
    assert [find_token(text, brackets) for text in ("⟨", "⟨E4⟩")] == [1, 2]


@pytest.mark.parametrize(
    "target", ["logit the vs the", 'logit the vs " the"', "logit , vs ,", "logit the vs the @1"]
)
def test_two_answers_that_are_the_same_token_are_refused(byte_level: Tokenizer, target: str) -> None:
    read = read_prompt("Story 3", byte_level, CONTEXT)
    with pytest.raises(
        ValueError, match=r"vs .*: both are the token '.*' \(id \d+\), so .* name two tokens$"
    ):
        read.answers(parse_target(target))
    with pytest.raises(ValueError, match="both are the token"):
        parse_metric(target.removesuffix(" @1"), read)


def test_answers_of_a_target_are_its_tokens(byte_level: Tokenizer) -> None:
    read = read_prompt("Story 3", byte_level, CONTEXT)
    names = [[each.name for each in read.answers(parse_target(target))] for target in (
        "logits", "logit the", 'logit the vs "the"', "feature 0/1",
    )]  # fmt: skip
    assert names == [[], [" the"], [" the", "the"], []]


# Targets


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("logit by", ("logit", -1, "by", "")),
        ("logit  by vs  fire @3", ("difference", 3, " by", " fire")),
        ('logit "a vs b"', ("logit", -1, '"a vs b"', "")),
        ('logit "a vs b" vs "c @2" @-2', ("difference", -2, '"a vs b"', '"c @2"')),
        ('logit a vs "b vs c"', ("difference", -1, "a", '"b vs c"')),
        ('logit "', ("logit", -1, '"', "")),
        ('logit "\\"" @1', ("logit", 1, '"\\""', "")),
    ],
)
def test_quotes_hold_an_answer_together(target: str, expected: tuple) -> None:
    assert parse_target(target)[:4] == expected


def test_escapes_in_quotes_are_those_of_json() -> None:
    assert parse_answer('"\\n\\t\\"\\u4e2d"') == ('\n\t"中', True)
    assert parse_answer('"a\nb"') == ("a\nb", True)
    assert parse_answer("by") == ("by", False)
    assert parse_answer('"') == ('"', False)
    for written, message in (('"\\q"', "cannot be read"), ('""', "is no token")):
        with pytest.raises(ValueError, match=message):
            parse_target(f"logit {written}")
