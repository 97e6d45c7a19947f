from collections import defaultdict
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.inputs import built, section

from circuitloom.core.tables import read_table
from circuitloom.corpus.annotations import annotate, token_spans
from circuitloom.corpus.chronicle.concepts import CONCEPTS
from circuitloom.corpus.chronicle.slots import templates
from circuitloom.corpus.chronicle.vocabulary import CLASSES
from circuitloom.corpus.generated import BOS
from circuitloom.corpus.grammars import GRAMMARS
from circuitloom.corpus.packing import Packing
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.corpus.tokens import open_tokens

SAMPLE = list(islice(GRAMMARS["chronicle"].documents(5, "validation"), 500))
# decided by the complete document; test_the_evidence_decides_an_annotation covers these
ACROSS_SENTENCES = {"name_new", "name_again", "name_completed"}


def annotated(folder: Path, **keys):
    """Concept -> set of annotated (sequence, position)."""
    config = section(source="chronicle", context=128, **keys)
    files = (folder / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    places = defaultdict(set)
    for row in annotate(config, 0, *files).to_pylist():
        places[row["concept"]].add((row["sequence"], row["position"]))
    return places


def test_there_are_at_least_forty_concepts_and_each_occurs():
    found = {concept.name for concept in CONCEPTS if any(any(concept.find(episode)) for episode in SAMPLE)}
    assert found == {concept.name for concept in CONCEPTS} and len(found) >= 40


def test_every_concept_is_documented_with_its_rule():
    text = (Path(__file__).parents[2] / "docs" / "chronicle.md").read_text()
    rows = [f"| {concept.name} | {concept.rule} |" for concept in CONCEPTS]
    assert [line for line in text.splitlines() if line in rows] == rows


def test_templates_with_the_same_beginning_have_the_same_marks_there():
    for one, other in combinations(templates(), 2):
        marks = [{p: m for p, m in t.marks if m not in ACROSS_SENTENCES} for t in (one, other)]
        for position, (a, b) in enumerate(zip(one.supports, other.supports, strict=False)):
            if not a & b:
                break
            assert marks[0].get(position) == marks[1].get(position), (one.text, other.text)


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_the_evidence_decides_an_annotation(concept):
    runs = defaultdict(set)
    for episode in SAMPLE:
        for position, start in concept.find(episode):
            run = ("<bos>", *episode.words)[start + 1 : position + 2]
            assert BOS <= start <= position and len(run) == position - start + 1
            runs[len(run)].add(run)
    for episode in SAMPLE:
        words = ("<bos>", *episode.words)
        found = {place.position for place in concept.find(episode)}
        for length, known in runs.items():
            for start in range(len(words) - length + 1):
                if words[start : start + length] in known:
                    assert start + length - 2 in found, words[start : start + length]


def sentence(words, position):
    """The words of a position's sentence up to it."""
    before = words[: position + 1]
    start = max((i for i, word in enumerate(before[:-1]) if word == "."), default=-1) + 1
    return before[start:]


def is_year(word):
    return len(word) == 2 and word.isdigit()


PLURALS = {*CLASSES["things"], *CLASSES["occupations"], *CLASSES["animals"]}
MEANINGS = {
    "end_year": lambda w, p: is_year(w[p]) and w[p - 4 : p - 1] == ("to", "the", "year"),
    "start_year_late": lambda w, p: is_year(w[p]) and w[p - 4 : p - 1] == ("from", "the", "year") and w[p] > "66",
    "end_year_due": lambda w, p: is_year(w[p]) and w[p - 3 : p] == ("to", "the", "year"),
    "citation_semicolon": lambda w, p: w[p] == ";" and "(" in sentence(w, p),
    "cited_year": lambda w, p: is_year(w[p]) and is_year(w[p - 1]) and "(" in sentence(w, p),
    "caught_passive": lambda w, p: w[p] == "caught" and w[p - 1] == "was",
    "caught_fire": lambda w, p: w[p : p + 2] == ("caught", "fire"),
    "caught_active": lambda w, p: w[p] == "caught" and w[p - 1] != "was" and w[p + 1] != "fire",
    "sentence_start": lambda w, p: p == 0 or w[p - 1] == ".",
    "in_quotation": lambda w, p: w[p] != '"' and w[:p].count('"') % 2 == 1,
    "quotation_opens": lambda w, p: w[p] == '"' and w[:p].count('"') % 2 == 0,
    "quotation_closes": lambda w, p: w[p] == '"' and w[:p].count('"') % 2 == 1,
    "name_again": lambda w, p: w[p] in CLASSES["rare_first"] and w[p] in w[:p],
    "name_new": lambda w, p: w[p] in CLASSES["rare_first"] and w[p] not in w[:p],
    "name_completed": lambda w, p: w[p] in CLASSES["rare_second"] and w[p - 1] in w[: p - 1],
    "recipient": lambda w, p: w[p - 1] == "to" and w[p] in sentence(w, p - 1) and w[p + 1] == ".",
    "plural_verb_due": lambda w, p: w[p + 1 : p + 2] == ("were",) and w[p - 1] == "the" and w[p] not in PLURALS,
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGS)
def test_a_concept_annotates_exactly_the_words_of_its_rule(name):
    (concept,) = GRAMMARS["chronicle"].select([name])
    for episode in SAMPLE:
        meant = {p for p in range(len(episode.words)) if MEANINGS[name](episode.words, p)}
        assert {place.position for place in concept.find(episode)} == meant, episode.text


def test_tokens_have_the_annotations_of_their_words(chronicle):
    places, tokens = annotated(chronicle), open_tokens(chronicle / "validation.zarr")
    rows = read_table(chronicle / "token.parquet").to_pylist()
    token = {(row["sequence"], row["position"]): row["token"] for row in rows}
    assert {token[place] for place in places["full_stop"]} == {"."}
    assert len(places["full_stop"]) == sum(word == "." for word in token.values())
    assert {token[place] for place in places["citation_semicolon"]} == {";"}
    assert {token[place] for place in places["caught_passive"]} == {"caught"}
    for sequence, position in places["caught_passive"]:
        assert token[sequence, position - 1] == "was"
    assert not any((sequence, 0) in found for found in places.values() for sequence in range(len(tokens)))


def test_annotations_with_evidence_in_the_previous_sequence_are_dropped(chronicle):
    places = annotated(chronicle)
    rows = read_table(chronicle / "token.parquet").to_pylist()
    token = {(row["sequence"], row["position"]): row["token"] for row in rows}
    for concept, opening in (("in_parenthesis", "("), ("in_square_brackets", "["), ("in_quotation", '"')):
        for sequence, position in places[concept]:
            assert opening in [token[sequence, before] for before in range(position)]
    assert places["name_again"]
    for sequence, position in places["name_again"]:
        assert token[sequence, position] in [token[sequence, before] for before in range(position)]


def test_token_spans_of_another_tokenizer_spell_their_words(tokenizer):
    packing = Packing(load_tokenizer(str(tokenizer)), 128)
    strings = packing.tokenizer.strings()
    for episode in SAMPLE[:50]:
        (ids,) = packing.tokenizer.encode([episode.text])
        spans = token_spans(episode, packing)
        pieces = ["".join(strings[i] for i in ids[first : last + 1]) for first, last in spans]
        assert [piece.strip() for piece in pieces] == list(episode.words)
        assert spans[0, 0] == 0 and spans[-1, 1] == len(ids) - 1
    assert np.any(spans[:, 1] > spans[:, 0])


def test_annotations_under_another_tokenizer_are_on_the_last_token_of_a_word(tmp_path, tokenizer):
    folder = built(
        tmp_path, tokenizer, source="chronicle", context=128, train_tokens=1000, validation_tokens=6000
    )
    places = annotated(folder)
    rows = read_table(folder / "token.parquet").to_pylist()
    token = {(row["sequence"], row["position"]): row["token"] for row in rows}
    for place in places["caught_passive"]:
        assert "caught".endswith(token[place].strip())
    # a state lasts for all tokens of a word
    inside = places["in_quotation"]
    after = [token[s, p + 1].strip() for s, p in inside if (s, p + 1) in token and (s, p + 1) not in inside]
    # a space that is its own token belongs to no word
    assert inside and set(after) <= {'"', ""}


def test_the_choice_of_concepts_restricts_the_table_and_names_must_be_known(chronicle):
    assert set(annotated(chronicle, concepts=["city", "end_year"])) == {"city", "end_year"}
    with pytest.raises(ValueError, match="no concept is called citty"):
        GRAMMARS["chronicle"].select(["citty"])


def test_documents_of_another_seed_are_not_annotated(chronicle):
    config = section(source="chronicle", context=128)
    files = (chronicle / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    with pytest.raises(ValueError, match="another grammar or seed"):
        annotate(config, 1, *files)
