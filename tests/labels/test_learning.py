"""Descriptions that are learned are those that were planted, and their words say what they are."""

import numpy as np
import pytest
from tests.labels.inputs import make_text

from circuitloom.labels.conditions import NEAR_PLACE, Description, Flag, Start, TokenAt
from circuitloom.labels.learning import MAX_WORDS, Learner, SearchSettings, near_of
from circuitloom.labels.text import BRACKETS, SENTENCE, LabelText

WORDS = ["red", "blue", "cat", "dog", "runs", "sits", "walking", "talking", "eating", "going", "doing", "seeing",
         "being", "having", "12", "7", "(", ")", ".", "big"]  # fmt: skip


@pytest.fixture(scope="module")
def text() -> LabelText:
    random = np.random.default_rng(0)
    return make_text([" ".join(random.choice(WORDS, 15)) for _ in range(160)], 16)


def learned(text: LabelText, description: Description, **keys):
    """The description learned of a feature that fires where `description` holds, and its F1 in the other half."""
    candidate = Learner(text, SearchSettings(cost=0.01, **keys)).learn(description.where(text.learning, text))
    found = set(candidate.description.where(text.scoring, text).tolist())
    truth = set(description.where(text.scoring, text).tolist())
    return candidate.description, 2 * len(found & truth) / (len(found) + len(truth))


def units(text: LabelText, *words: str) -> tuple[int, ...]:
    return tuple(text.number[word] for word in words)


def test_planted_descriptions_are_found_and_put_into_words(text) -> None:
    cases = {
        "`cat`": (TokenAt(0, units(text, "cat")),),
        "numbers": (TokenAt(0, name="numbers"),),
        "words in -ing": (TokenAt(0, name="words in -ing"),),
        "anything after `red`": (TokenAt(1, units(text, "red")),),
        "anything two tokens after `red`": (TokenAt(2, units(text, "red")),),
        "anything four tokens after `red`": (TokenAt(4, units(text, "red")),),
        "`cat` after `red`": (TokenAt(0, units(text, "cat")), TokenAt(1, units(text, "red"))),
        "words in -ing after numbers": (TokenAt(0, name="words in -ing"), TokenAt(1, name="numbers")),
        "anything in brackets": (Flag(BRACKETS),),
        "first token of a document": (Start(1),),
    }
    for label, conditions in cases.items():
        description, f1 = learned(text, Description(conditions))
        assert (description.text(text), f1) == (label, 1.0)


def test_a_set_of_tokens_is_found(text) -> None:
    description, f1 = learned(text, Description((TokenAt(0, units(text, "cat", "dog", "big")),)))
    assert f1 == 1.0
    assert set(description.text(text).split(", ")) == {"`cat`", "`dog`", "`big`"}


def test_the_best_set_of_each_size_is_that_of_all_sets(text) -> None:
    """Of features that fire on some tokens with different rates, against all sets of at most three tokens."""
    from itertools import combinations

    random = np.random.default_rng(1)
    half = text.learning
    unit = half.unit(0)
    for _ in range(5):
        rate = random.random(len(text.names) + 1) ** 3
        fires = np.flatnonzero(random.random(len(half)) < rate[unit])
        hits, occurs = (np.bincount(each, minlength=len(text.names)) for each in (unit[fires], unit))
        best = max(
            2 * hits[list(chosen)].sum() / (len(fires) + occurs[list(chosen)].sum() + 1)
            for size in (1, 2, 3)
            for chosen in combinations(range(len(text.names)), size)
        )
        candidate = Learner(text, SearchSettings(cost=0.0, steps=0)).learn(fires)
        assert candidate.f(len(fires)) >= best - 1e-12


def test_a_longer_label_must_be_better_by_its_cost(text) -> None:
    cat, dog = (
        Description((TokenAt(0, units(text, word)),)).where(text.learning, text) for word in ("cat", "dog")
    )
    # with dogs, F1 is about 0.86, and without them 0.8
    fires = np.union1d(cat, dog[::2])
    free, costly = (Learner(text, SearchSettings(cost=cost)).learn(fires).description for cost in (0.0, 0.1))
    assert free.words > costly.words
    assert costly.text(text) == "`cat`"


def test_no_label_has_more_than_eight_words(text) -> None:
    random = np.random.default_rng(2)
    for share in (0.02, 0.2, 0.7):
        fires = np.flatnonzero(random.random(len(text.learning)) < share)
        description = Learner(text, SearchSettings(cost=0.0, beam=3, steps=3)).learn(fires).description
        assert description.words <= MAX_WORDS


def test_a_feature_that_fires_almost_everywhere_is_said_to(text) -> None:
    fires = np.arange(len(text.learning))
    assert (
        Learner(text, SearchSettings(cost=0.01)).learn(fires).description.text(text) == "almost every token"
    )


def test_promoted_tokens_are_said(text) -> None:
    fires = Description((TokenAt(-1, units(text, "dog")),)).where(text.learning, text)
    found = (
        Learner(text, SearchSettings(cost=0.01)).learn(fires, promoted=units(text, "dog", "cat")).description
    )
    assert (found.text(text), found.kind) == ("says `dog`", "output")


def test_a_next_token_that_is_not_promoted_describes_nothing(text) -> None:
    description = Description((TokenAt(-1, units(text, "dog")),))
    fires = description.where(text.learning, text)
    for promoted in ((), units(text, "cat", "red")):
        found = Learner(text, SearchSettings(cost=0.01)).learn(fires, promoted=promoted)
        assert not any(
            isinstance(each, TokenAt) and each.place == -1 for each in found.description.conditions
        )
        assert found.f(len(fires)) < 0.3


def test_an_upstream_description_is_inherited_and_says_so(text) -> None:
    # of three conditions, which two steps of the search do not reach
    conditions = (
        TokenAt(0, units(text, "cat", "dog")), TokenAt(2, units(text, "red", "blue")), TokenAt(3, name="words in -ing")
    )  # fmt: skip
    source = Description(conditions, upstream=True)
    fires = source.where(text.learning, text)
    assert len(fires) > 3
    found = (
        Learner(text, SearchSettings(cost=0.0, beam=1, steps=0)).learn(fires, upstream=[source]).description
    )
    assert (found.conditions, found.kind) == (conditions, "upstream")


def test_through_a_head_a_token_is_soon_after(text) -> None:
    assert near_of(Description((TokenAt(0, units(text, "cat")),))) == Description(
        (TokenAt(NEAR_PLACE, units(text, "cat")),), upstream=True
    )
    assert near_of(Description((TokenAt(0, name="numbers"),))) is None


def test_positions_where_a_description_holds_are_those_of_its_conditions(text) -> None:
    conditions = (
        TokenAt(0, name="words in -ing"),
        TokenAt(NEAR_PLACE, units(text, "cat")),
        Flag(SENTENCE),
        Start(8),
    )
    for half in (text.learning, text.scoring):
        for order in (conditions, conditions[::-1], conditions[1:], conditions[:1]):
            expected = np.all([each.holds(half, text) for each in order], 0)
            assert Description(order).where(half, text).tolist() == np.flatnonzero(expected).tolist()
        words = np.array([*text.names, ""])
        near = [any(words[unit] == "cat" for unit in row) for row in half.near]
        assert TokenAt(NEAR_PLACE, units(text, "cat")).holds(half, text).tolist() == near


@pytest.mark.parametrize(
    ("conditions", "kind", "label"),
    [
        ((), "always", "almost every token"),
        ((TokenAt(0, (0,)), TokenAt(1, (1,)), TokenAt(2, (2,))), "n-gram", "`(` after `. )`"),
        ((TokenAt(0, (0, 1)), TokenAt(1, (2,))), "conjunction", "`(`, `)` after `.`"),
        ((TokenAt(-1, (0,)), TokenAt(0, (1,))), "conjunction", "says `(` at `)`"),
        ((TokenAt(-1, (0,)), TokenAt(1, (1,))), "conjunction", "says `(` after `)`"),
        ((TokenAt(0, (0,)), Flag(BRACKETS)), "conjunction", "`(` in brackets"),
        ((Flag(SENTENCE),), "position", "first token of a sentence"),
        ((Start(4),), "position", "first 4 tokens of a document"),
        ((TokenAt(0, (0,)), Start(1)), "conjunction", "`(` in the first token of a document"),
        ((TokenAt(NEAR_PLACE, (0,)),), "context", "anything soon after `(`"),
        ((TokenAt(2, name="numbers"), Flag(BRACKETS)), "conjunction", "anything two tokens after numbers in brackets"),
    ],
)  # fmt: skip
def test_labels_and_kinds(conditions, kind, label, text) -> None:
    assert list(text.names[:3]) == ["(", ")", "."]
    description = Description(conditions)
    assert (description.kind, description.text(text)) == (kind, label)
