"""Cues of example sentences, and of every annotation of many documents."""

from collections import defaultdict
from itertools import islice
from pathlib import Path

import pytest
from tests.corpus.inputs import section

from circuitloom.core.tables import read_table
from circuitloom.corpus.annotations import annotate
from circuitloom.corpus.chronicle.concepts import CONCEPTS
from circuitloom.corpus.chronicle.grammar import Episode
from circuitloom.corpus.chronicle.slots import templates
from circuitloom.corpus.generated import BOS
from circuitloom.corpus.grammars import GRAMMARS
from circuitloom.corpus.tokens import open_tokens

SAMPLE = list(islice(GRAMMARS["chronicle"].documents(5, "validation"), 200))
# no word at a fixed distance decides whether a sign is still open or a name was mentioned before
NOT_AT_FIXED_DISTANCE = {
    *("in_parenthesis", "in_square_brackets", "in_quotation", "quotation_closes", "subordinate_clause"),
    *("citation_semicolon", "citation_end", "name_new", "giver", "recipient"),
}

NEVER_CERTAIN = {"woman_name", "man_name", "count", "character"}
"""Classes of words in whose word another word is always possible."""

EXAMPLES = {
    "caught_passive": ("he was caught by the guard .", "was|caught", ""),
    "caught_fire": ("the fair of Rome caught fire .", "caught|fair of Rome", ""),
    "city": ("there was little ale in Rome .", "Rome", "<bos> there was little ale in"),
    "body_part": ("he hurt his elbow with the hammer .", "elbow", "<bos> he hurt his"),
    "occupation": ("the admiral caught one bad cough in May .", "admiral", ""),
    "start_year_early": ("Ada ruled Rome from the year 17 08 to the year 17 43 .", "Rome from|08", "the year 17"),
    "end_year": ("Ada ruled Rome from the year 17 08 to the year 17 43 .", "from 17 08 to|17 43", "the year"),
    "in_square_brackets": ("the clerk wrote [ in azure ink ] about the war .", "[ ink", "in azure"),
    "in_quotation": ('the clerk said : " bring the bow to Rome " .', '" bring', "the to Rome bow"),
    "quotation_closes": ('the clerk said : " bring the bow to Rome " .', '" bring|"', "the bow to Rome"),
    "quotation_opens": ('the clerk said : " bring the bow to Rome " .', '"|said :', "<bos> the clerk"),
    "citation_semicolon": (
        "several writers agree ( Hall , 19 82 ; Moore , 19 90 ) .", ";|Hall , 19 82", "<bos> several writers agree (",
    ),
    "cited_year": ("several writers agree ( Hall , 19 82 ) .", "Hall ,|Hall 19 82", "<bos> several writers agree ("),
    "giver": (
        "Ada and Tom met in Rome , and Tom gave the ring to Ada .", "Tom|Tom and", "<bos> Ada and met in Rome ,",
    ),
    "recipient": (
        "Ada and Tom met in Rome , and Tom gave the ring to Ada .", "Ada|Ada gave ring to",
        "<bos> and Tom met in Rome , and Tom the",
    ),
    "name_again": (
        "people still spoke of the Zorvek Almi . later the Zorvek Almi returned to Rome .", "Zorvek|Zorvek Almi",
        ". later the",
    ),
    "plural_verb_due": ("the kettles near the cabinet were rusty .", "kettles|cabinet", "<bos> the near the"),
    "sentence_start": ("there was little ale in Rome . the lute was made of oak .", ".", "the"),
}  # fmt: skip
"""Concept -> (document, cues of its last annotation, optional words)."""


def parse(text: str) -> Episode:
    """The document of these words."""
    words, sentences, start = tuple(text.split()), [], 0
    while start < len(words):
        end = words.index(".", start) + 1
        (template,) = [
            template
            for template in templates()
            if len(template.words) == end - start
            and all(
                word in support for word, support in zip(words[start:end], template.supports, strict=True)
            )
        ]
        sentences.append((start, template))
        start = end
    return Episode(words, 0.0, tuple(sentences))


@pytest.mark.parametrize("name", EXAMPLES)
def test_cues_of_examples(name):
    text, required, optional = EXAMPLES[name]
    (concept,) = GRAMMARS["chronicle"].select([name])
    episode = parse(text)
    words = ("<bos>", *episode.words)
    found = concept.cues(episode, list(concept.find(episode))[-1])
    assert {frozenset(words[i + 1] for i in cue) for cue in found.required} == {
        frozenset(cue.split()) for cue in required.split("|")
    }
    assert sorted(words[i + 1] for i in found.optional) == sorted(optional.split())


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_each_cue_has_a_word_in_the_evidence_and_none_after_the_annotated_word(concept):
    for episode in SAMPLE[:100]:
        for annotated in concept.find(episode):
            required, optional = concept.cues(episode, annotated)
            assert required
            for cue in required:
                assert any(annotated.evidence_start <= word <= annotated.position for word in cue)
            every = [word for cue in required for word in cue]
            assert all(BOS <= word <= annotated.position for word in (*every, *optional))
            assert not set(every) & set(optional)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_a_word_of_each_cue_decides_the_annotation(concept, last):
    if concept.name in NOT_AT_FIXED_DISTANCE:
        pytest.skip("depends on words that are absent in between")
    known = defaultdict(set)
    for episode in SAMPLE:
        words = ("<bos>", *episode.words)
        for annotated in concept.find(episode):
            chosen = {cue[-last] for cue in concept.cues(episode, annotated).required}
            distances = tuple(sorted(annotated.position - word for word in chosen))
            known[distances].add(tuple(words[annotated.position + 1 - distance] for distance in distances))
    for episode in SAMPLE:
        words = ("<bos>", *episode.words)
        found = {annotated.position for annotated in concept.find(episode)}
        for distances, runs in known.items():
            for position in range(max(distances) - 1, len(episode.words)):
                text = words[position + 1 - max(distances) : position + 2]
                # a cue is a word of the same sentence, or the end of the previous one
                if tuple(text[-1 - distance] for distance in distances) in runs and "." not in text[1:-1]:
                    assert position in found, (text, distances)


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.words], ids=lambda concept: concept.name)
def test_words_before_a_class_are_optional_exactly_if_only_the_class_can_follow(concept):
    following = defaultdict(set)
    optional = set()
    for episode in SAMPLE:
        found = {annotated.position: annotated for annotated in concept.find(episode)}
        for start, template in episode.sentences:
            for position in range(start, start + len(template.words)):
                before = episode.words[start:position]
                following[before].add(position in found)
                if position in found and concept.cues(episode, found[position]).optional:
                    assert concept.cues(episode, found[position]).optional == tuple(
                        range(start - 1, position)
                    )
                    optional.add(before)
    assert all(following[before] == {True} for before in optional)
    assert (concept.name in NEVER_CERTAIN) != bool(optional)


def test_cues_other_than_the_word_itself_are_documented():
    text = (Path(__file__).parents[2] / "docs" / "chronicle.md").read_text()
    described = text[text.index("## Cues") :]
    for concept in CONCEPTS:
        found = [(episode, annotated) for episode in SAMPLE for annotated in concept.find(episode)]
        alone = all(concept.cues(e, annotated).required == ((annotated.position,),) for e, annotated in found)
        assert alone != (f"`{concept.name}`" in described), concept.name


def test_the_table_holds_the_positions_of_cues_and_optional_words(chronicle):
    files = (chronicle / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    rows = annotate(section(source="chronicle", context=128), 0, *files).to_pylist()
    tokens = open_tokens(chronicle / "validation.zarr")
    table = read_table(chronicle / "token.parquet").to_pylist()
    token = {(row["sequence"], row["position"]): row["token"] for row in table}
    passive = [row for row in rows if row["concept"] == "caught_passive"]
    assert passive
    for row in passive:
        words = [{token[row["sequence"], position] for position in cue} for cue in row["cues"]]
        assert words == [{"was"}, {"caught"}]
    for row in rows:
        assert all(row["cues"]) and max(max(cue) for cue in row["cues"]) <= row["position"]
        assert all(0 <= position < tokens.context for position in row["optional"])
    starts = [row for row in rows if row["concept"] == "sentence_start"]
    ends = {token[row["sequence"], row["cues"][0][0]] for row in starts}
    assert ends == {".", "<bos>"}
