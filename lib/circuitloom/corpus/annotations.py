"""Concept labels of words, carried over to the tokens of packed sequences."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..config import corpus as config
from ..core.tables import CONCEPT, read_table
from .chronicle.concepts import Concept, select
from .chronicle.cues import AnnotatedWord
from .chronicle.grammar import Episode, write
from .packing import Layout
from .source import VALIDATION
from .tokenizer import load_tokenizer
from .tokens import open_tokens


def annotate(section: config.Corpus, seed: int, document: Path, tokenizer: Path, tokens: Path) -> pa.Table:
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
    found: list[list[_Label]] = [[] for _ in concepts]
    begin = 0
    for episode in episodes:
        spans = token_spans(episode, layout)
        begin += len(layout.before)
        tokens = _tokens(spans, begin, layout)
        for labels, concept in zip(found, concepts, strict=True):
            for place in concept.find(episode):
                labels.extend(_labels(place, concept, episode, tokens))
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


class _Label(NamedTuple):
    """A labelled token, and others that matter to it: numbers in the stream of all documents."""

    token: int
    since: int
    """First token of what decides it."""
    cues: list[list[int]]
    optional: list[int]


def _tokens(spans: Int[np.ndarray, "word 2"], begin: int, layout: Layout) -> list[range]:
    """The tokens of each word of a document that begins at `begin`; at the end, under -1, those of its BOS."""
    words = [range(begin + first, begin + last + 1) for first, last in spans.tolist()]
    return [*words, range(begin - len(layout.before), begin)]


def _labels(place: AnnotatedWord, concept: Concept, episode: Episode, tokens: list[range]) -> list[_Label]:
    """The labels that a labelled word gives, one a token of it."""
    word = tokens[place.position]
    # the BOS in front of every sequence stands in for the document's own
    since = tokens[max(place.since, 0)].start
    needed, optional = concept.cues(episode, place)
    cues = [[token for each in cue for token in tokens[each]] for cue in needed]
    others = [token for each in optional for token in tokens[each]]
    return [_Label(token, since, cues, others) for token in (word if concept.lasting else word[-1:])]


def _table(found: list[list[_Label]], names: list[str], layout: Layout, sequences: int) -> pa.Table:
    rows: dict[str, list] = {name: [] for name in CONCEPT.columns}
    stride, before = layout.stride, len(layout.before)
    for name, labels in sorted(zip(names, found, strict=True)):
        for annotate in sorted(labels):
            sequence, place = divmod(annotate.token, stride)
            # a document may go on in the next sequence, which does not see what came before
            if sequence != annotate.since // stride or sequence >= sequences:
                continue
            first = sequence * stride - before
            row = (
                name,
                sequence,
                place + before,
                [_positions(cue, first, annotate.token) for cue in annotate.cues],
                _positions(annotate.optional, first, annotate.token),
            )
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
    return pa.table(rows, schema=CONCEPT.schema)


def _positions(tokens: list[int], first: int, last: int) -> list[int]:
    """Positions of tokens in the sequence that begins at `first`, those up to `last` that lie in it."""
    return [token - first for token in tokens if first <= token <= last]
