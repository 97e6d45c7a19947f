"""Concept annotations of generated text: from the words of a document to the tokens of packed sequences."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..config import corpus as config
from ..core.tables import CONCEPT, read_table
from .chronicle.concepts import Concept, select_concepts
from .chronicle.cues import AnnotatedWord
from .chronicle.grammar import Episode, write_episode
from .packing import Packing
from .source import VALIDATION
from .tokenizer import load_tokenizer
from .tokens import open_tokens


def annotate(section: config.Corpus, seed: int, document: Path, tokenizer: Path, tokens: Path) -> pa.Table:
    """CONCEPT rows of the held-out split that `build_corpus` wrote; empty for real text.

    Raises ValueError if a concept is unknown or the documents are from another seed or grammar.
    """
    if not isinstance(section, config.Chronicle):
        return CONCEPT.schema.empty_table()
    concepts = select_concepts(section.concepts)
    texts = read_table(document, pc.field("split") == VALIDATION)["text"].to_pylist()
    packing = Packing(load_tokenizer(str(tokenizer)), section.context)
    return concept_table(_episodes(seed, texts, document), concepts, packing, len(open_tokens(tokens)))


def _episodes(seed: int, texts: Sequence[str], document: Path) -> Iterable[Episode]:
    for number, text in enumerate(texts):
        episode = write_episode(seed, VALIDATION, number)
        if episode.text != text:
            raise ValueError(
                f"{document}: document {number} is from another grammar or seed; build the corpus again"
            )
        yield episode


def concept_table(
    episodes: Iterable[Episode], concepts: Sequence[Concept], packing: Packing, sequences: int
) -> pa.Table:
    """CONCEPT rows of documents packed one after the other into `sequences` sequences, sorted by the table's key.

    Annotations whose evidence begins in an earlier sequence are dropped.
    """
    found: list[list[_Annotation]] = [[] for _ in concepts]
    start = 0
    for episode in episodes:
        spans = token_spans(episode, packing)
        start += len(packing.prefix)
        tokens = _word_tokens(spans, start, packing)
        for annotations, concept in zip(found, concepts, strict=True):
            for word in concept.find(episode):
                annotations.extend(_token_annotations(word, concept, episode, tokens))
        start += int(spans[-1, 1]) + 1 + len(packing.suffix)
    return _table(found, [concept.name for concept in concepts], packing, sequences)


def token_spans(episode: Episode, packing: Packing) -> Int[np.ndarray, "word 2"]:
    """First and last token of each word of a document."""
    ends = np.cumsum([len(word) + 1 for word in episode.words]) - 1
    starts = ends - [len(word) for word in episode.words]
    offsets = packing.tokenizer.offsets(episode.text)
    first = np.searchsorted(offsets[:, 1], starts, side="right")
    last = np.searchsorted(offsets[:, 0], ends, side="left") - 1
    return np.stack([first, last], axis=1)


class _Annotation(NamedTuple):
    """An annotated token. Tokens are numbered from the start of the stream of all documents."""

    token: int
    evidence_start: int
    """First token of the evidence."""
    cues: list[list[int]]
    optional: list[int]


def _word_tokens(spans: Int[np.ndarray, "word 2"], start: int, packing: Packing) -> list[range]:
    """Tokens of each word of a document that begins at `start`; the last entry (index -1) is its BOS."""
    words = [range(start + first, start + last + 1) for first, last in spans.tolist()]
    return [*words, range(start - len(packing.prefix), start)]


def _token_annotations(
    word: AnnotatedWord, concept: Concept, episode: Episode, tokens: list[range]
) -> list[_Annotation]:
    """Annotations of a word's tokens: all of them for a lasting concept, else the last."""
    annotated = tokens[word.position] if concept.lasting else tokens[word.position][-1:]
    # evidence that begins at the document's BOS may begin at the BOS of the sequence instead
    evidence_start = tokens[max(word.evidence_start, 0)].start
    required, optional = concept.cues(episode, word)
    cues = [[token for each in cue for token in tokens[each]] for cue in required]
    optional_tokens = [token for each in optional for token in tokens[each]]
    return [_Annotation(token, evidence_start, cues, optional_tokens) for token in annotated]


def _table(found: list[list[_Annotation]], names: list[str], packing: Packing, sequences: int) -> pa.Table:
    rows: dict[str, list] = {name: [] for name in CONCEPT.columns}
    stride, n_prefix = packing.stride, len(packing.prefix)
    for name, annotations in sorted(zip(names, found, strict=True)):
        for annotation in sorted(annotations):
            sequence, offset = divmod(annotation.token, stride)
            # a document may continue in the next sequence, where its earlier tokens are not visible
            if sequence != annotation.evidence_start // stride or sequence >= sequences:
                continue
            first = sequence * stride - n_prefix
            row = (
                name,
                sequence,
                offset + n_prefix,
                [_positions(cue, first, annotation.token) for cue in annotation.cues],
                _positions(annotation.optional, first, annotation.token),
            )
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
    return pa.table(rows, schema=CONCEPT.schema)


def _positions(tokens: list[int], first: int, last: int) -> list[int]:
    """Positions, in the sequence that begins at token `first`, of the tokens from `first` to `last`."""
    return [token - first for token in tokens if first <= token <= last]
