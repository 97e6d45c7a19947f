"""Prompts of greater-than: which are dropped, which years are answers, which cases are refused."""

import pytest
from pydantic import TypeAdapter
from tests.cases.year_model import YEARS, make_case

from circuitloom.cases.greater_than.measurements import find_answers, make_prompts
from circuitloom.config.cases import Cases
from circuitloom.corpus.chronicle.vocabulary import CLASSES, NUMBERS
from circuitloom.corpus.tokenizer import word_tokenizer


def test_prompts_of_another_length_or_without_a_year_of_one_token_are_dropped_and_counted():
    # 22 is two tokens wherever it is written, 23 is one only as an answer
    tokenizer = pairs_of_digits({"22", "c23"})
    case = make_case(template="c{year}c", slots={}, fillings=1)
    answers = find_answers(case, tokenizer)
    assert answers.year.tolist() == [20, 21, 23, 24, 25, 26]
    prompts = make_prompts(case, tokenizer, 16, answers)
    assert prompts.start.tolist() == [20, 21, 24, 25] and prompts.dropped == 2
    assert set(prompts.other_start.tolist()) <= {20, 21, 24, 25}
    assert prompts.token.shape[1] == 3
    with pytest.raises(ValueError, match="2 of 4 prompts have a start year that is one token; change"):
        make_prompts(case.model_copy(update={"last": 23}), tokenizer, 16, answers)


def pairs_of_digits(without: set[str]):
    """A tokenizer that splits `c20c` into c, 20 and c, without single tokens for the strings in `without`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from circuitloom.corpus.tokenizer import Tokenizer as Wrapped

    pieces = ["c", "2", *(str(year) for year in YEARS if str(year) not in without), "c23"]
    pattern = r"c23|2(?=2)|\d\d|c|\d"
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="2"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")  # type: ignore[assignment]
    return Wrapped(backend, bos_id=None, eos_id=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"template": "from c to c"}, "has no {year}"),
        ({"template": "the {thing} {year}"}, "nothing fills {thing}"),
        ({"first": 30, "last": 30}, "is not before last"),
        ({"layer": 1, "feature": "0/3"}, "feature 0/3 is not of layer 1"),
        ({"feature": "0/3@2"}, "names a position"),
        ({"last": 99}, "less than or equal to 98"),
    ],
)
def test_an_invalid_case_is_refused(keys: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_case(**keys)


def test_the_projects_own_cases_are_accepted_and_published_values_added():
    files = ["config/cases/english.yaml", "config/cases/gpt2-published.yaml"]
    english, published = (
        TypeAdapter(Cases).validate_python(files[: n + 1])["greater_than"] for n in range(2)
    )
    assert english.template == published.template and english.layer is None
    assert (published.layer, published.feature) == (10, "10/5315")
    assert published.published.replaced == 0.7978
    chronicle = TypeAdapter(Cases).validate_python("config/cases/chronicle.yaml")["greater_than"]
    words = {*CLASSES["event"], *NUMBERS, "the", "lasted", "from", "year", "to"}
    tokenizer = word_tokenizer(sorted(words))
    prompts = make_prompts(chronicle, tokenizer, 16, find_answers(chronicle, tokenizer))
    assert prompts.start.unique().tolist() == list(range(2, 99)) and prompts.dropped == 0


def test_years_that_the_vocabulary_lacks_are_no_answers():
    tokenizer = word_tokenizer(["c", "07", " 31", "100", "7"])
    answers = find_answers(make_case(), tokenizer)
    assert answers.year.tolist() == [7, 31] and answers.token.tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"no tokens for years written 'y\{year\}'; change `answer`"):
        find_answers(make_case(answer="y{year}"), tokenizer)


@pytest.mark.parametrize(
    ("template", "answer", "token"),
    [
        ("from 17{year} to 17", "{year}", "43"),
        ("from the year {year} to the year", "{year}", " 43"),
        ("from 17{year} to 17", " {year}", " 43"),
        ("from 16{year} to 16", "{year}", "44"),
        ("from the year {year} to the year", "{year}", " 45"),
    ],
)
def test_an_answer_follows_the_century_as_the_start_year_does(template: str, answer: str, token: str):
    # 44 exists only without a blank, 45 only with one
    tokenizer = years_with_and_without_blank("43", " 43", "44", " 45")
    answers = find_answers(make_case(template=template, slots={}, answer=answer), tokenizer)
    chosen = dict(zip(answers.year.tolist(), answers.token.tolist(), strict=True))
    assert tokenizer.strings()[chosen[int(token)]] == token


def years_with_and_without_blank(*tokens: str):
    """A byte-level tokenizer of digits, a blank and the given tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from circuitloom.corpus.tokenizer import Tokenizer as Wrapped

    pieces = [*"0123456789", "Ġ", *(token.replace(" ", "Ġ") for token in tokens)]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return Wrapped(backend, bos_id=None, eos_id=None)
