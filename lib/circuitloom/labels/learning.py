"""Learns the best description of where a feature fires, by a beam search over conjunctions of conditions.

1. Every condition is scored by the F1 with which it tells where the feature fires: for each place the best sets of
   tokens and all classes, the flags of positions, and the starts of documents. Of next tokens, which the model does not
   see, only those that the feature promotes count: "says `by`".
2. The best of them, and those with the best F2, which weights recall more, are refined: among the positions where they
   hold, conditions are scored again. `SearchSettings.steps` says how often.
3. Of all that was found, the description with the highest F1 less a cost per word is chosen.

All counts are over the learning half. `scores` has the scores on the other half.

A set of tokens with the highest F1 consists of the tokens with the largest 2 n_fires - F1 n, where n is how often a
token occurs and n_fires how often the feature fires there (Dinkelbach 1967 on fractional programs). With the F1 of the
best single token in place of that of the set, one sort finds sets of all sizes; a second pass with their F1 changed
mean F1 by less than 0.001.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int

from .conditions import NEAR_PLACE, Condition, Description, Flag, Start, TokenAt
from .text import FLAGS, PLACES, STARTS, Half, LabelText

MAX_WORDS = 8
"""Largest number of words of a label, with a token as a word."""
MAX_TOKENS = 5
"""Largest number of tokens in a set."""
NEXT = PLACES.index(-1)
"""Row of the next token."""
KEPT = 2**26
"""Number of positions of conditions that are kept in memory."""
PLACE_WORDS = np.array([TokenAt(place).words for place in (*PLACES, NEAR_PLACE)])
"""Number of words for each place of tokens."""
FLAG_WORDS = np.array([Flag(name).words for name in FLAGS])
START_WORDS = np.array([Start(size).words for size in STARTS])
FINALISTS = 12
"""Number of descriptions whose positions are counted at the end."""
ALWAYS_FROM = 0.5
"""Smallest density of features that may be described as firing almost everywhere."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search."""

    cost: float
    """Cost per word, in F1."""
    beam: int = 2
    """Number of descriptions that are refined at each step, by F1 and again by F2."""
    steps: int = 1
    """Number of times that descriptions are refined."""


@dataclass(frozen=True)
class ScoredDescription:
    """A description with its counts on the learning half."""

    description: Description
    hits: int
    """Number of positions where it holds and the feature fires."""
    predicted: int
    """Number of positions where it holds."""

    def f(self, fires: int, beta: float = 1.0) -> float:
        """Returns F_beta, given the number of positions where the feature fires.

        One false prediction is added, so that a token that occurs once is not a perfect description.
        """
        weight = beta * beta
        return (1 + weight) * self.hits / (weight * fires + self.predicted + 1)


@dataclass
class Learner:
    """Learns descriptions on one text. Holds what all features share."""

    text: LabelText
    search: SearchSettings
    _kept: dict[Condition, Int[np.ndarray, " some"]] = field(default_factory=dict)

    @cached_property
    def _all(self) -> "_Counts":
        """Counts over all positions of the learning half."""
        return _Counts.over(self.text.learning, None, self.text)

    def where(self, description: Description) -> Int[np.ndarray, " some"]:
        """Returns the positions of the learning half where a description with conditions holds, in text order."""
        half, (first, *others) = self.text.learning, description.conditions
        if isinstance(first, TokenAt) and first.units and first.place != NEAR_PLACE:
            return description.where(half, self.text)
        # conditions without tokens of their own recur
        if first not in self._kept:
            if sum(map(len, self._kept.values())) > KEPT:
                self._kept.clear()
            self._kept[first] = Description((first,)).where(half, self.text)
        found = self._kept[first]
        for condition in others:
            found = found[condition.holds(half, self.text, found)]
        return found

    def learn(
        self,
        fires: Int[np.ndarray, " firing"],
        promoted: Sequence[int] = (),
        upstream: Sequence[Description] = (),
    ) -> ScoredDescription:
        """Returns the best description of a feature that fires at the positions `fires` of the learning half.

        `promoted` are the units whose logits the feature raises most. `upstream` are descriptions of features that it
        is connected to, which are tried and refined too.
        """
        n, width = len(fires), len(self.text.learning)
        firing = np.zeros(width, bool)
        firing[fires] = True
        promotes = frozenset(promoted)
        found = self._refined(Description(), None, fires, n, promotes)
        found += [self._counted(each, firing) for each in [*upstream, *_said(promoted)]]
        if n >= ALWAYS_FROM * width:
            found.append(ScoredDescription(Description(), n, width))
        beam = self._best(found, n)
        for _ in range(self.search.steps):
            refined = []
            for candidate in beam:
                if candidate.description.conditions:
                    where = self.where(candidate.description)
                    refined += self._refined(candidate.description, where, where[firing[where]], n, promotes)
            found += refined
            beam = self._best(refined, n)
        found.sort(key=lambda each: -self._value(each, n))
        exact = [
            self._counted(each.description, firing) if each.description.is_near else each
            for each in found[:FINALISTS]
        ]
        return max(exact, key=lambda each: self._value(each, n))

    def _value(self, candidate: ScoredDescription, fires: int) -> float:
        """Returns F1 less the cost of the words."""
        return candidate.f(fires) - self.search.cost * candidate.description.words

    def _counted(self, description: Description, firing: Bool[np.ndarray, " position"]) -> ScoredDescription:
        """Returns a description with its counts of positions."""
        where = self.where(description)
        return ScoredDescription(description, int(np.count_nonzero(firing[where])), len(where))

    def _best(self, found: Sequence[ScoredDescription], fires: int) -> list[ScoredDescription]:
        """Returns the candidates to be refined: the best by F1 and the best by F2."""
        best: dict[frozenset[Condition], ScoredDescription] = {}
        for beta in (1.0, 2.0):
            for each in sorted(found, key=lambda each, beta=beta: -each.f(fires, beta))[: self.search.beam]:
                # conditions in another order are the same description
                best.setdefault(frozenset(each.description.conditions), each)
        return list(best.values())

    def _refined(
        self,
        description: Description,
        where: Int[np.ndarray, " some"] | None,
        firing: Int[np.ndarray, " firing"],
        n: int,
        promoted: frozenset[int],
    ) -> list[ScoredDescription]:
        """Returns the best of the descriptions with one more condition, by F1 less the cost of words and by F2.

        The description holds at the positions `where`, and the feature fires at `firing` among them, and at `n`
        positions in all.
        """
        if not len(firing):
            return []
        half, text = self.text.learning, self.text
        inside = self._all if where is None else _Counts.over(half, where, text)
        counts = _Counts.over(half, firing, text)
        options = [
            *_token_options(counts, inside, n, self.search.cost, promoted),
            *([_class_options(counts, inside, n, self.search.cost, text)] if text.classes else []),
            _Options(counts.flags, inside.flags, FLAG_WORDS, lambda i: Flag(FLAGS[i])),
            _Options(counts.starts, inside.starts, START_WORDS, lambda i: Start(STARTS[i])),
        ]
        taken = {_aspect(each) for each in description.conditions}
        chosen = _best_options(options, inside.total, n, self.search, MAX_WORDS - description.words, taken)
        return [
            ScoredDescription(
                replace(description, conditions=(*description.conditions, condition)), hits, predicted
            )
            for condition, hits, predicted in chosen
        ]


def _aspect(condition: Condition) -> tuple[str, int | str]:
    """Returns what a condition is about. A description has at most one condition on each aspect."""
    match condition:
        case TokenAt(place=place):
            return "place", place
        case Flag(name=name):
            return "flag", name
    return "start", 0


@dataclass(frozen=True)
class _Options:
    """Conditions of one kind."""

    hits: np.ndarray
    """Number of positions where each holds and the feature fires."""
    predicted: np.ndarray
    """Number of positions where it holds."""
    words: np.ndarray
    condition: Callable[[int], Condition]
    """Returns a condition by its index."""


def _best_options(
    options: Sequence[_Options],
    total: int,
    fires: int,
    search: SearchSettings,
    left: int,
    taken: set[tuple[str, int | str]],
) -> list[tuple[Condition, int, int]]:
    """Returns the best conditions by F1 less the cost of words, and by F2, with their counts.

    They have at most `left` words, are about none of the aspects in `taken`, and do not hold at all of the `total`
    positions, where they would add nothing.
    """
    hits, predicted, words = (
        np.concatenate([getattr(each, name) for each in options]) for name in ("hits", "predicted", "words")
    )
    which = [(each, i) for each in options for i in range(len(each.hits))]
    possible = (hits > 0) & (predicted < total) & (words <= left)
    chosen: dict[Condition, tuple[int, int]] = {}
    for weight, cost in ((1.0, search.cost), (4.0, 0.0)):
        score = np.where(possible, _f(hits, predicted, fires, weight) - cost * words, -np.inf)
        order = np.argsort(-score, kind="stable")
        kept = 0
        for i in order[possible[order]].tolist():
            kind, number = which[i]
            condition = kind.condition(number)
            if _aspect(condition) not in taken:
                chosen[condition] = int(hits[i]), int(predicted[i])
                kept += 1
            if kept > search.beam:
                break
    return [(condition, *counts) for condition, counts in chosen.items()]


def _f(hits: np.ndarray, predicted: np.ndarray, fires: int, weight: float = 1.0) -> np.ndarray:
    """Returns `ScoredDescription.f` for arrays of counts. `weight` is beta squared."""
    return (1 + weight) * hits / (weight * fires + predicted + 1)


@dataclass(frozen=True)
class _Counts:
    """Counts over some positions."""

    total: int
    units: Int[np.ndarray, "row unit"]
    """How often each unit occurs at each of PLACES, and in the last row among the tokens near before."""
    classes: Float32[np.ndarray, "place class"]
    """How often each class occurs at each of PLACES."""
    flags: Int[np.ndarray, " flag"]
    starts: Int[np.ndarray, " start"]

    @classmethod
    def over(cls, half: Half, positions: Int[np.ndarray, " some"] | None, text: LabelText) -> "_Counts":
        """Returns the counts over `positions`, or over the whole half."""
        units, flags, starts = half.count(positions)
        present = np.flatnonzero(units[:-1].any(0))
        classes = units[:-1, present].astype(np.float32) @ text.members[present]
        return cls(len(half) if positions is None else len(positions), units, classes, flags, starts)


def _token_options(
    counts: _Counts, inside: _Counts, fires: int, cost: float, promoted: frozenset[int]
) -> list[_Options]:
    """Returns the best set of tokens at each place by F1 less the cost of words, and the best by F2."""
    unit = np.flatnonzero(counts.units[:-1].any(0))
    h, n = counts.units[:-1].take(unit, 1), inside.units[:-1].take(unit, 1)
    # the model does not see the next token, but may predict it
    h[NEXT] *= [each in promoted for each in unit.tolist()]
    best = _f(h, n, fires).max(1, keepdims=True)
    # other tokens are in no best set
    useful = np.flatnonzero((2 * h > best * n).any(0))
    unit, h, n = unit[useful], h.take(useful, 1), n.take(useful, 1)
    size = min(MAX_TOKENS, len(unit))
    rows = np.arange(len(h))
    order = _largest(2 * h - best * n, size)
    hits, occurs = h[rows[:, None], order].cumsum(1), n[rows[:, None], order].cumsum(1)
    words = cost * np.arange(1, size + 1)
    last = np.stack([(_f(hits, occurs, fires, weight) - words).argmax(1) for weight in (1.0, 4.0)], 1)

    def condition(i: int) -> Condition:
        units = unit[order[i // 2, : last.flat[i] + 1]]
        return TokenAt(PLACES[i // 2], tuple(units.tolist()))

    chosen = rows[:, None], last
    sets = _Options(
        hits[chosen].ravel(),
        occurs[chosen].ravel(),
        (last + 1 + PLACE_WORDS[:-1, None]).ravel(),
        condition,
    )
    near_h, near_n = counts.units[-1], inside.units[-1]
    near = int(_f(near_h, near_n, fires).argmax())
    one = slice(near, near + 1)
    return [
        sets,
        _Options(near_h[one], near_n[one], PLACE_WORDS[-1:] + 1, lambda i: TokenAt(NEAR_PLACE, (near,))),
    ]


def _class_options(counts: _Counts, inside: _Counts, fires: int, cost: float, text: LabelText) -> _Options:
    """Returns the best class at each place by F1 less the cost of words, and the best by F2."""
    words = text.class_words
    best = np.stack(
        [
            (_f(counts.classes, inside.classes, fires, weight) - cost * words).argmax(1)
            for weight in (1.0, 4.0)
        ],
        1,
    )
    chosen = np.arange(len(PLACES))[:, None], best
    hits = counts.classes[chosen]
    hits[NEXT] = 0
    return _Options(
        hits.ravel(),
        inside.classes[chosen].ravel(),
        (words[best] + PLACE_WORDS[:-1, None]).ravel(),
        lambda i: TokenAt(PLACES[i // 2], name=text.class_names[best.flat[i]]),
    )


def _largest(value: np.ndarray, size: int) -> Int[np.ndarray, "row some"]:
    """Returns the columns of the `size` largest values of each row, the largest first."""
    if size == value.shape[1]:
        return np.argsort(-value, axis=1, kind="stable")
    some = np.argpartition(-value, size - 1, axis=1)[:, :size]
    order = np.argsort(-np.take_along_axis(value, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def _said(promoted: Sequence[int]) -> list[Description]:
    """Returns descriptions of the positions before promoted tokens: of the first one, of the first two, and so on."""
    return [
        Description((TokenAt(-1, tuple(promoted[:size])),))
        for size in range(1, min(MAX_TOKENS, len(promoted)) + 1)
    ]


def near_of(description: Description) -> Description | None:
    """Returns the description of positions soon after those of a description. None if that has no single token."""
    match description.conditions:
        case (TokenAt(place=0, units=(unit,)),):
            return Description((TokenAt(NEAR_PLACE, (unit,)),), upstream=True)
    return None
