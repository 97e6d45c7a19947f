"""Annotates generated text with concepts. First, the words of a document that have a concept are found. Then these
words are mapped to tokens of packed sequences."""

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
    """Returns the CONCEPT rows of the validation split. For real text, the table has no rows.

    `document` (a table), `tokenizer` (a folder) and `tokens` (an array) are outputs of `build_corpus`.
    Raises ValueError if the name of a concept is unknown, or if the documents do not come from this seed and grammar.
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
    """Returns the CONCEPT rows of `episodes`, sorted by the key of the table.

    `episodes` must be all documents of a split, in order. `sequences` is the number of sequences of the split. An
    annotation is dropped if the first token of the evidence and the annotated token are in different sequences.
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
    """Returns, for each word, the index of the word's first token and the index of the word's last token.

    Index 0 is the document's first token after the BOS.
    """
    ends = np.cumsum([len(word) + 1 for word in episode.words]) - 1
    starts = ends - [len(word) for word in episode.words]
    offsets = packing.tokenizer.offsets(episode.text)
    first = np.searchsorted(offsets[:, 1], starts, side="right")
    last = np.searchsorted(offsets[:, 0], ends, side="left") - 1
    return np.stack([first, last], axis=1)


class _Annotation(NamedTuple):
    """An annotated token and its cues.

    A token is given by its number, counted from the start of the stream. The stream is the concatenation of all
    documents.
    """

    token: int
    evidence_start: int
    """Number of the first token of the evidence."""
    cues: list[list[int]]
    optional: list[int]


def _word_tokens(spans: Int[np.ndarray, "word 2"], start: int, packing: Packing) -> list[range]:
    """Returns the numbers of the tokens of each word of a document.

    `start` is the number of the first token of the first word. The last entry of the result (index -1) contains the
    number of the document's BOS.
    """
    words = [range(start + first, start + last + 1) for first, last in spans.tolist()]
    return [*words, range(start - len(packing.prefix), start)]


def _token_annotations(
    word: AnnotatedWord, concept: Concept, episode: Episode, tokens: list[range]
) -> list[_Annotation]:
    """Returns the annotations of the tokens of a word.

    If the concept is lasting, each token of the word is annotated. Otherwise only the last token is annotated.
    """
    annotated = tokens[word.position] if concept.lasting else tokens[word.position][-1:]
    # evidence that begins at the document's BOS counts from the first word, because each sequence has its own BOS
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
    """Returns the positions of `tokens` in the sequence that has the token `first` at position 0.

    Tokens before the token `first` and tokens after the token `last` are left out.
    """
    return [token - first for token in tokens if first <= token <= last]
