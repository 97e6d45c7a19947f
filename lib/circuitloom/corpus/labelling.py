"""Concept labels of words, carried over to the tokens of packed sequences."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..config import corpus as config
from ..tables import CONCEPT, read_table
from .chronicle.concepts import Concept, Place, select
from .chronicle.grammar import Episode, write
from .packing import Layout
from .source import VALIDATION
from .tokenizer import load_tokenizer
from .tokens import open_tokens


def label(section: config.Corpus, seed: int, document: Path, tokenizer: Path, tokens: Path) -> pa.Table:
    """The rows of CONCEPT for a held-out split that `build` wrote; none where no grammar wrote its documents.

    Raises ValueError where a concept is unknown, or the documents are not those of this seed and grammar.
    """
    if not isinstance(section, config.Chronicle):
        return CONCEPT.schema.empty_table()
    concepts = select(section.concepts)
    texts = read_table(document, pc.field("split") == VALIDATION)["text"].to_pylist()
    layout = Layout(load_tokenizer(str(tokenizer)), section.context)
    return concept_table(_episodes(seed, texts, document), concepts, layout, len(open_tokens(tokens)))


def _episodes(seed: int, texts: Sequence[str], document: Path) -> Iterable[Episode]:
    for number, text in enumerate(texts):
        episode = write(seed, VALIDATION, number)
        if episode.text != text:
            raise ValueError(
                f"{document}: another grammar or seed wrote document {number}; build the corpus again"
            )
        yield episode


def concept_table(
    episodes: Iterable[Episode], concepts: Sequence[Concept], layout: Layout, sequences: int
) -> pa.Table:
    """The rows of CONCEPT for documents packed one after the other into `sequences` sequences, sorted by its key.

    A label is left out where the words that decide it are not all in the sequence.
    """
    found: list[list[tuple[int, int]]] = [[] for _ in concepts]
    begin = 0
    for episode in episodes:
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
    concept = np.repeat(np.arange(len(names)), [len(places) for places in found])
    token, since = np.array([pair for places in found for pair in places], np.int64).reshape(-1, 2).T
    sequence, position = np.divmod(token, layout.stride)
    # a document may go on in the next sequence, which does not see what came before
    kept = (sequence == since // layout.stride) & (sequence < sequences)
    rows = pa.table(
        {
            "concept": pa.array(names, pa.string()).take(pa.array(concept[kept])),
            "sequence": pa.array(sequence[kept], pa.int32()),
            "position": pa.array(position[kept] + len(layout.before), pa.int16()),
        }
    )
    rows = rows.sort_by([(key, "ascending") for key in CONCEPT.key])
    return rows.set_column(
        0, "concept", rows["concept"].dictionary_encode().cast(CONCEPT.schema.field(0).type)
    )
