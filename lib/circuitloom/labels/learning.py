"""Learns the best description of where a feature fires, by a beam search over conjunctions of conditions.

1. Every condition is scored by the F1 with which it tells where the feature fires: for each place the best sets of
   tokens and all classes, the flags of positions, and the starts of documents.
2. The best of them, and those with the best F2, which weights recall more, are refined: among the positions where they
   hold, conditions are scored again. This is done twice.
3. Of all that was found, the description with the highest F1 less a cost per word is chosen. Its F1 is computed with
   the documents from which it was not learned left to `scores`.

A set of tokens S with the highest F1 consists of the tokens with the largest 2 n_fires - F1 n, where n is how often a
token occurs and n_fires how often the feature fires there (Dinkelbach 1967 on fractional programs), so one sort finds
the best sets of all sizes for a given F1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int

from .conditions import NEAR_PLACE, Condition, Description, Flag, Start, Tokens, distinct
from .text import PLACES, Half, LabelText

MAX_WORDS = 8
"""Largest number of words of a label, with a token as a word."""
MAX_TOKENS = 5
"""Largest number of tokens in a set."""
STARTS = (1, 2, 4, 8)
"""Numbers of first tokens of a document that are tried as a condition."""
KEPT = 2**26
"""Number of positions of conditions that are kept in memory."""
FINALISTS = 12
"""Number of descriptions whose positions are counted at the end."""
ALWAYS_FROM = 0.5
"""Smallest density of features that may be described as firing almost everywhere."""


@dataclass(frozen=True)
class Search:
    """Settings of the search."""

    cost: float
    """Cost per word, in F1."""
    beam: int = 3
    """Number of descriptions that are refined at each step, by F1 and again by F2."""
    steps: int = 2
    """Number of times that descriptions are refined."""


@dataclass(frozen=True)
class Candidate:
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
    search: Search
    _kept: dict[Condition, Int[np.ndarray, " some"]] = field(default_factory=dict)

    @cached_property
    def _all(self) -> "_Counts":
        """Counts over all positions of the learning half."""
        return _Counts.over(self.text.learning, None, self.text)

    def where(self, description: Description) -> Int[np.ndarray, " some"]:
        """Returns the positions of the learning half where a description with conditions holds, in text order."""
        half = self.text.learning
        first, *others = description.conditions
        found = self._where(first)
        for condition in others:
            found = found[condition.holds(half, self.text, found)]
        return found

    def _where(self, condition: Condition) -> Int[np.ndarray, " some"]:
        """Returns the positions where a condition holds. Those of conditions without tokens of their own are kept."""
        match condition:
            case Tokens(place=place, units=(_, *_) as units) if place != NEAR_PLACE:
                return self.text.learning.positions_of(place, units)
        if condition not in self._kept:
            if sum(map(len, self._kept.values())) > KEPT:
                self._kept.clear()
            self._kept[condition] = np.flatnonzero(condition.holds(self.text.learning, self.text))
        return self._kept[condition]

    def learn(
        self,
        fires: Int[np.ndarray, " firing"],
        promoted: Sequence[int] = (),
        upstream: Sequence[Description] = (),
    ) -> Candidate:
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
            found.append(Candidate(Description(), n, width))
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

    def _value(self, candidate: Candidate, fires: int) -> float:
        """Returns F1 less the cost of the words."""
        return candidate.f(fires) - self.search.cost * candidate.description.words

    def _counted(self, description: Description, firing: Bool[np.ndarray, " position"]) -> Candidate:
        """Returns a description with its counts of positions."""
        where = self.where(description)
        return Candidate(description, int(np.count_nonzero(firing[where])), len(where))

    def _best(self, found: Sequence[Candidate], fires: int) -> list[Candidate]:
        """Returns the candidates to be refined: the best by F1 and the best by F2."""
        best: dict[Description, Candidate] = {}
        for beta in (1.0, 2.0):
            ranked = sorted(found, key=lambda each, beta=beta: -each.f(fires, beta))
            best |= {each.description: each for each in ranked[: self.search.beam]}
        kept = {id(each) for each in distinct(list(best))}
        return [each for description, each in best.items() if id(description) in kept]

    def _refined(
        self,
        description: Description,
        where: Int[np.ndarray, " some"] | None,
        firing: Int[np.ndarray, " firing"],
        n: int,
        promoted: frozenset[int],
    ) -> list[Candidate]:
        """Returns the description with one more condition: a set of tokens at some place, a class, a flag or a start.

        The description holds at the positions `where`, and the feature fires at `firing` among them, and at `n`
        positions in all.
        """
        if not len(firing):
            return []
        half, text = self.text.learning, self.text
        inside = self._all if where is None else _Counts.over(half, where, text)
        counts = _Counts.over(half, firing, text)
        new: list[tuple[Condition, int, int]] = []
        new += _best_tokens(counts, inside, n, promoted)
        new += _best_classes(counts, inside, n, text)
        new += [(Flag(name), hits, inside.flags[name]) for name, hits in counts.flags.items()]
        new += [(Start(size), hits, inside.starts[size]) for size, hits in counts.starts.items()]
        taken = {_aspect(each) for each in description.conditions}
        left = MAX_WORDS - description.words
        possible = [
            (condition, hits, predicted)
            for condition, hits, predicted in new
            # a condition that always holds adds nothing
            if hits
            and predicted < inside.total
            and condition.words <= left
            and _aspect(condition) not in taken
        ]
        return [
            Candidate(replace(description, conditions=(*description.conditions, condition)), hits, predicted)
            for condition, hits, predicted in possible
        ]


def _aspect(condition: Condition) -> tuple[str, int | str]:
    """Returns what a condition is about. A description has one condition on each aspect."""
    match condition:
        case Tokens(place=place):
            return "place", place
        case Flag(name=name):
            return "flag", name
    return "start", 0


@dataclass(frozen=True)
class _Counts:
    """Counts over some positions."""

    total: int
    units: Int[np.ndarray, "row unit"]
    """How often each unit occurs at each of PLACES, and in the last row among the tokens near before. There, a token
    that occurs twice near a position counts twice."""
    classes: Float32[np.ndarray, "place class"]
    """How often each class occurs at each of PLACES."""
    flags: dict[str, int]
    starts: dict[int, int]

    @classmethod
    def over(cls, half: Half, positions: Int[np.ndarray, " some"] | None, text: LabelText) -> "_Counts":
        """Returns the counts over `positions`, or over the whole half."""
        codes = half.codes if positions is None else half.codes.take(positions, 0)
        rows, size = len(PLACES) + 1, half.outside + 1
        units = np.bincount(codes.ravel(), minlength=rows * size).reshape(rows, size)[:, :-1]
        present = np.flatnonzero(units[:-1].any(0))
        chosen = slice(None) if positions is None else positions
        start = half.place[chosen]
        return cls(
            total=len(codes),
            units=units,
            classes=units[:-1, present].astype(np.float32) @ text.members[present],
            flags={name: int(np.count_nonzero(flag[chosen])) for name, flag in half.flags.items()},
            starts={n: int(np.count_nonzero(start < n)) for n in STARTS},
        )


def _best_tokens(
    counts: _Counts, inside: _Counts, fires: int, promoted: frozenset[int]
) -> list[tuple[Condition, int, int]]:
    """Returns the best set of tokens of each size at each place, with the number of positions where it holds and the
    feature fires, and where it holds."""
    unit = np.flatnonzero(counts.units.any(0))
    h, n = counts.units[:, unit], inside.units[:, unit]
    best = (2 * h / (fires + n + 1)).max(1, keepdims=True)
    size = min(MAX_TOKENS, len(unit))
    for _ in range(2):
        order = _largest(2 * h - best * n, size)
        hits, occurs = (np.take_along_axis(each, order, 1).cumsum(1) for each in (h, n))
        best = np.maximum(best, (2 * hits / (fires + occurs + 1)).max(1, keepdims=True))
    found: list[tuple[Condition, int, int]] = []
    for row, place in enumerate((*PLACES, NEAR_PLACE)):
        chosen = unit[order[row]].tolist()
        for last in range(1 if place == NEAR_PLACE else size):
            hit = int(hits[row, last])
            if last and hit == hits[row, last - 1]:
                break
            units = tuple(chosen[: last + 1])
            said = place == -1 and promoted.issuperset(units)
            found.append((Tokens(place, units, said=said), hit, int(occurs[row, last])))
    return found


def _best_classes(
    counts: _Counts, inside: _Counts, fires: int, text: LabelText
) -> list[tuple[Condition, int, int]]:
    """Returns the two best classes at each place."""
    if not text.classes:
        return []
    f = 2 * counts.classes / (fires + inside.classes + 1)
    ranked = _largest(f, min(2, f.shape[1]))
    names = list(text.classes)
    return [
        (Tokens(place, name=names[i]), int(counts.classes[row, i]), int(inside.classes[row, i]))
        for row, place in enumerate(PLACES)
        for i in ranked[row].tolist()
    ]


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
        Description((Tokens(-1, tuple(promoted[:size]), said=True),))
        for size in range(1, min(MAX_TOKENS, len(promoted)) + 1)
    ]


def near_of(description: Description) -> Description | None:
    """Returns the description of positions soon after those of a description. None if that has no single token."""
    match description.conditions:
        case (Tokens(place=0, units=(unit,)),):
            return Description((Tokens(NEAR_PLACE, (unit,)),), upstream=True)
    return None
