"""Concept labels of words, carried over to the tokens of packed sequences."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from ..tables import CONCEPT
from .chronicle.concepts import Concept, Place
from .chronicle.grammar import Episode
from .packing import Layout


def concept_table(
    episodes: Iterable[Episode], concepts: Sequence[Concept], layout: Layout, sequences: int
) -> pa.Table:
    """The rows of CONCEPT for documents packed one after the other into `sequences` sequences, sorted by its key.

    A label is left out where the words that decide it are not all in the sequence.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in concepts]
    begin = 0
    for episode in episodes:
        if begin >= sequences * layout.stride:
            break
        spans = token_spans(episode, layout)
        begin += len(layout.before)
        for places, concept in zip(found, concepts, strict=True):
            for place in concept.find(episode):
                places += [(begin + t, begin + s) for t, s in _tokens(place, concept, spans)]
        begin += int(spans[-1, 1]) + 1 + len(layout.after)
    return _table(found, [concept.name for concept in concepts], layout, sequences)


def token_spans(episode: Episode, layout: Layout) -> Int[np.ndarray, "word 2"]:
    """First and last token of each word of a document."""
    ends = np.cumsum([len(word) + 1 for word in episode.words]) - 1
    starts = ends - [len(word) for word in episode.words]
    offsets = layout.tokenizer.offsets(episode.text)
    first = np.searchsorted(offsets[:, 1], starts, side="right")
    last = np.searchsorted(offsets[:, 0], ends, side="left") - 1
    return np.stack([first, last], axis=1)


def _tokens(place: Place, concept: Concept, spans: Int[np.ndarray, "word 2"]) -> list[tuple[int, int]]:
    """(token, first token of what decides it) for the tokens that a labelled word gives."""
    first, last = (int(token) for token in spans[place.position])
    # the BOS in front of every sequence stands in for the document's own
    since = int(spans[max(place.since, 0), 0])
    return [(token, since) for token in range(first if concept.lasting else last, last + 1)]


def _table(found: list[list[tuple[int, int]]], names: list[str], layout: Layout, sequences: int) -> pa.Table:
    stride = layout.stride
    concept = np.repeat(np.arange(len(names)), [len(places) for places in found])
    token, since = np.array([pair for places in found for pair in places], np.int64).reshape(-1, 2).T
    kept = (token // stride == since // stride) & (token < sequences * stride)
    order = np.argsort(np.array(names))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(names))
    concept, token = rank[concept[kept]], token[kept]
    place = np.lexsort((token, concept))
    return pa.table(
        {
            "concept": pa.DictionaryArray.from_arrays(
                pa.array(concept[place], pa.int16()), pa.array([names[i] for i in order])
            ),
            "sequence": pa.array(token[place] // stride, pa.int32()),
            "position": pa.array(token[place] % stride + len(layout.before), pa.int16()),
        },
        schema=CONCEPT.schema,
    )
