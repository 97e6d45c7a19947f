"""Annotates generated text: finds the words of each concept, and then the tokens of these words."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..config import corpus as config
from ..core.tables import CONCEPT, read_table
from .generated import AnnotatedWord, GeneratedDocument, Grammar, PlantedConcept
from .grammars import grammar_of
from .packing import Packing
from .source import VALIDATION
from .token_arrays import open_token_arrays
from .tokenizer import load_tokenizer


def annotate(section: config.Corpus, seed: int, document: Path, tokenizer: Path, tokens: Path) -> pa.Table:
    """Returns the table CONCEPT of the validation split. The table is empty for real text.

    `document`, `tokenizer` and `tokens` are paths of outputs of `build_corpus`. Raises ValueError if a concept is
    unknown. Also raises ValueError if `document` was built with another seed or grammar.
    """
    grammar = grammar_of(section)
    if grammar is None:
        return CONCEPT.schema.empty_table()
    assert isinstance(section, config.Chronicle | config.Guilds)
    concepts = grammar.select(section.concepts)
    texts = read_table(document, pc.field("split") == VALIDATION)["text"].to_pylist()
    packing = Packing(load_tokenizer(str(tokenizer)), section.context)
    return concept_table(
        _documents(grammar, seed, texts, document), concepts, packing, len(open_token_arrays(tokens))
    )


def _documents(
    grammar: Grammar, seed: int, texts: Sequence[str], document: Path
) -> Iterable[GeneratedDocument]:
    for number, text in enumerate(texts):
        written = grammar.write(seed, VALIDATION, number)
        if written.text != text:
            raise ValueError(
                f"{document}: document {number} is from another grammar or seed; build the corpus again"
            )
        yield written


def concept_table(
    documents: Iterable[GeneratedDocument],
    concepts: Sequence[PlantedConcept],
    packing: Packing,
    sequences: int,
) -> pa.Table:
    """Returns the table CONCEPT for `documents`, sorted by concept, sequence and position.

    `documents` must be all documents of a split, in order. `sequences` is the number of packed sequences of the split.
    An annotation is dropped if its evidence begins in an earlier sequence.
    """
    found: list[list[_Annotation]] = [[] for _ in concepts]
    start = 0
    for document in documents:
        spans = token_spans(document, packing)
        start += len(packing.prefix)
        tokens = _word_tokens(spans, start, packing)
        for annotations, concept in zip(found, concepts, strict=True):
            for word in concept.find(document):
                annotations.extend(_token_annotations(word, concept, document, tokens))
        start += int(spans[-1, 1]) + 1 + len(packing.suffix)
    return _table(found, [concept.name for concept in concepts], packing, sequences)


def token_spans(document: GeneratedDocument, packing: Packing) -> Int[np.ndarray, "word 2"]:
    """Returns spans[word] = (index of the word's first token, index of its last token).

    Index 0 is the document's first token after the BOS.
    """
    ends = np.cumsum([len(word) + 1 for word in document.words]) - 1
    starts = ends - [len(word) for word in document.words]
    offsets = packing.tokenizer.offsets(document.text)
    first = np.searchsorted(offsets[:, 1], starts, side="right")
    last = np.searchsorted(offsets[:, 0], ends, side="left") - 1
    return np.stack([first, last], axis=1)


class _Annotation(NamedTuple):
    """An annotated token and its cues. Tokens are numbered from the start of the stream of all documents."""

    token: int
    evidence_start: int
    """Number of the first token of the evidence."""
    cues: list[list[int]]
    optional: list[int]


def _word_tokens(spans: Int[np.ndarray, "word 2"], start: int, packing: Packing) -> list[range]:
    """Returns the token numbers of each word of a document. Index -1 of the result is the BOS.

    `start` is the number of the document's first token after the BOS.
    """
    words = [range(start + first, start + last + 1) for first, last in spans.tolist()]
    return [*words, range(start - len(packing.prefix), start)]


def _token_annotations(
    word: AnnotatedWord, concept: PlantedConcept, document: GeneratedDocument, tokens: list[range]
) -> list[_Annotation]:
    """Returns the annotations of `word`: on all tokens if the concept is lasting, otherwise on the last token."""
    annotated = tokens[word.position] if concept.lasting else tokens[word.position][-1:]
    # evidence that begins at the document's BOS counts from the first word, because each sequence has its own BOS
    evidence_start = tokens[max(word.evidence_start, 0)].start
    required, optional = concept.cues(document, word)
    cues = [[token for each in cue for token in tokens[each]] for cue in required]
    optional_tokens = [token for each in optional for token in tokens[each]]
    return [_Annotation(token, evidence_start, cues, optional_tokens) for token in annotated]


def _table(found: list[list[_Annotation]], names: list[str], packing: Packing, sequences: int) -> pa.Table:
    rows: dict[str, list] = {name: [] for name in CONCEPT.columns}
    stride, n_prefix = packing.stride, len(packing.prefix)
    for name, annotations in sorted(zip(names, found, strict=True)):
        for annotation in sorted(annotations):
            sequence, offset = divmod(annotation.token, stride)
            # a document may continue in the next sequence, but the tokens of one sequence are not visible in the next
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
    """Returns the positions of `tokens` in one sequence. Tokens outside the sequence are left out.

    All arguments are indices of tokens in the split. `first` and `last` are the sequence's first and last token.
    """
    return [token - first for token in tokens if first <= token <= last]
