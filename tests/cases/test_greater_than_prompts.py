"""Prompts of greater-than: which are dropped, which years are answers, which cases are refused."""

import pytest
import torch
from pydantic import TypeAdapter
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.cases.year_model import YEARS, make_case

from circuitloom.cases.case_report import write_report
from circuitloom.cases.context import CaseContext
from circuitloom.cases.greater_than.prompts import AnswerYears, find_answers, make_prompts, read_task
from circuitloom.cases.greater_than.report import make_report
from circuitloom.cases.greater_than.study import measure_greater_than
from circuitloom.config.cases import Cases
from circuitloom.core.tables import read_table
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


def digit_tokenizer(*pieces: str):
    """A tokenizer of single digits, and of other pieces, each of which is one token where it stands."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from circuitloom.corpus.tokenizer import Tokenizer as Wrapped

    words = [*"0123456789", "from", "to", " ", *pieces]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(words)}, unk_token=" "))
    pattern = "|".join(sorted(words, key=len, reverse=True))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")  # type: ignore[assignment]
    return Wrapped(backend, bos_id=None, eos_id=None)


DIGIT_KEYS = {"template": "from 17{year} to 17", "slots": {}, "fillings": 1, "first": 2, "last": 98}


def test_a_tokenizer_of_digits_is_asked_for_the_tens_digit_alone():
    tokenizer = digit_tokenizer()
    answers, prompts = read_task(make_case(**DIGIT_KEYS), tokenizer, 32)
    assert answers.digits == "tens" and answers.year.tolist() == list(range(10))
    # no later digit than 9, and no earlier one than 0
    assert prompts.start.unique().tolist() == list(range(1, 9)) and len(prompts) == 80
    assert prompts.dropped == 97 - 80
    assert prompts.text[3] == "from 1713 to 17" and prompts.start[3] == 1
    assert prompts.place == 4 and set(prompts.half) == {"finding", "testing"}
    changed = prompts.token != prompts.other
    assert changed.nonzero()[:, 1].unique().tolist() == [prompts.place]
    assert prompts.other[:, prompts.place].tolist() == prompts.other_start.tolist()


def test_units_follow_the_tens_digit_of_the_start_year():
    case = make_case(**DIGIT_KEYS, digits="units")
    answers, prompts = read_task(case, digit_tokenizer(), 32)
    assert prompts.text[0] == "from 1702 to 170" and prompts.start.unique().tolist() == list(range(9))
    assert prompts.place == 5 and (prompts.token[:, 4] == prompts.token[:, -1]).all()
    assert prompts.of("finding").start.unique().tolist() == list(range(9))
    torch.testing.assert_close(
        answers.metric(torch.zeros(2, 10), torch.tensor([0, 8])), torch.tensor([0.8, -0.8])
    )


def test_a_tokenizer_of_three_digits_is_asked_for_the_units():
    # as in Llama 3, 1743 is 174 and 3
    tokenizer = digit_tokenizer(
        *(f"1{tens:02d}" for tens in range(70, 80)), *(f"{y:02d}" for y in range(10, 100))
    )
    answers, prompts = read_task(make_case(**DIGIT_KEYS), tokenizer, 32)
    assert answers.digits == "units" and prompts.text[0] == "from 1702 to 170"
    assert prompts.token.shape[1] == 8
    with pytest.raises(
        ValueError, match="0 of 97 prompts have a tens digit that is one token in the start year"
    ):
        read_task(make_case(**DIGIT_KEYS, digits="tens"), tokenizer, 32)


def test_two_digits_are_asked_for_wherever_the_tokenizer_has_them():
    tokenizer = digit_tokenizer("17", *(f"{year}" for year in range(20, 60)))
    case = make_case(**DIGIT_KEYS)
    answers, prompts = read_task(case, tokenizer, 32)
    assert answers.digits == "both" and prompts.start.tolist() == [17, *range(20, 59)]
    as_before = make_prompts(case, tokenizer, 32, find_answers(case, tokenizer))
    assert prompts.text == as_before.text and prompts.half == as_before.half


def test_a_tokenizer_without_digits_is_refused():
    with pytest.raises(ValueError, match=r"has no tokens for years written '\{year\}'; change `answer`"):
        read_task(make_case(), word_tokenizer(["c", "the", "war"]), 32)
    with pytest.raises(ValueError, match="has no tokens for digits written"):
        read_task(make_case(digits="tens"), word_tokenizer(["c", "the", "war"]), 32)


def test_an_equal_tens_digit_is_left_out_and_all_digits_count_otherwise():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    answers = AnswerYears(torch.arange(4), torch.arange(4), "tens")
    p = logits[0, [0, 1, 3]].softmax(0)
    expected = p[2] - p[0] - p[1]
    torch.testing.assert_close(answers.metric(logits, torch.tensor([2])), expected[None])
    # even a model that is sure of the equal digit has a metric
    sure = logits + torch.tensor([0.0, 0.0, 50.0, 0.0])
    torch.testing.assert_close(answers.metric(sure, torch.tensor([2])), expected[None])
    masks = (answers.later(torch.tensor([2])), answers.others(torch.tensor([2])))
    assert [mask[0].tolist() for mask in masks] == [[False, False, False, True], [True, True, False, False]]


@pytest.mark.parametrize("digits", ["tens", pytest.param("units", marks=pytest.mark.slow)])
def test_every_measurement_and_table_of_a_case_works_with_single_digits(digits: str, tmp_path):
    model = load_tiny("llama", tmp_path)
    context = CaseContext(model, digit_tokenizer(), {"tc": make_dictionaries(model)}, 32)
    keys = {
        **DIGIT_KEYS,
        "first": 12,
        "last": 38,
        "digits": digits,
        "features": 2,
        "resamples": 50,
        "traced": 2,
    }
    results = measure_greater_than("digits", context, make_case(**keys, width=4, length=2))
    report = make_report("digits", results, make_case(**keys), context.tokenizer.strings(), model.layers)
    write_report(report, tmp_path / "digits")
    assert read_table(tmp_path / "digits" / "year.parquet").num_rows == 2 * len(results.years.year)
    claims = {claim.name: claim for claim in report.claims}
    with torch.inference_mode():
        logits = model.module(results.prompts.token).logits[:, -1, :10]
    if digits == "tens":
        equal = torch.arange(10) == results.prompts.start[:, None]
        logits = logits.masked_fill(equal, -torch.inf)
    later = torch.arange(10) > results.prompts.start[:, None]
    expected = (logits.softmax(1) * torch.where(later, 1.0, -1.0)).sum(1)
    assert claims["untouched"].value == pytest.approx(float(expected.mean()), abs=1e-6)
    assert f"start year's {digits} digit" in claims["year_first"].statement
    assert f"the next token is the {digits} digit of the end year" in report.method[0]
    assert len(results.direct) == results.prompts.half.count("testing")
    assert torch.isfinite(results.direct).all() and torch.isfinite(results.patching.effect).all()


def test_fewer_prompts_are_evenly_spaced_over_the_start_years_of_each_half():
    every = read_task(make_case(**DIGIT_KEYS), digit_tokenizer(), 32)[1]
    some = read_task(make_case(**DIGIT_KEYS, prompts=16), digit_tokenizer(), 32)[1]
    assert len(some) == 16 and some.half.count("finding") == 8 and some.dropped == every.dropped
    assert [text for text in every.text if text in some.text] == some.text
    assert some.of("testing").start.unique().tolist() == list(range(1, 9))
