"""The corpus guilds: what its tables promise, its probabilities and annotations, and the facts that are held out."""

import math
from collections import Counter, defaultdict
from itertools import islice, product
from pathlib import Path

import pytest
from tests.corpus.inputs import built, section, texts

from circuitloom.core.tables import read_table
from circuitloom.corpus.annotations import annotate
from circuitloom.corpus.grammars import GRAMMARS
from circuitloom.corpus.guilds import (
    CONCEPTS,
    FACTS,
    GUILDS,
    HABITS,
    SENTENCES,
    TOWNS,
    TRADES,
    VERBS,
    frequent_answer,
    questions,
    vocabulary,
)

GRAMMAR = GRAMMARS["guilds"]
SAMPLE = list(islice(GRAMMAR.documents(5, "validation"), 400))
DOC = (Path(__file__).parents[2] / "docs" / "guilds.md").read_text()


def sentences(words):
    """The sentences of a document, as lists of words without the full stop."""
    return [sentence.split() for sentence in " ".join(words).split(" .") if sentence]


def read(sentence):
    """(region, rank, verb) of a sentence, found by its words alone."""
    _, town, trade, verb, *_ = sentence
    (region,) = [i for i, row in enumerate(TOWNS) if town in row]
    (rank,) = [i for i, row in enumerate(TRADES) if trade in row]
    return region, rank, VERBS.index(verb)


def test_no_word_has_two_meanings():
    assert len(set(vocabulary())) == len(vocabulary())
    assert {word for document in SAMPLE for word in document.words} == set(vocabulary())


def test_neither_the_town_nor_the_trade_tells_the_guild_or_the_answer():
    pairs = {fact[:2]: fact.guild for fact in FACTS}
    assert set(Counter(pairs.values()).values()) == {6} and len(set(pairs.values())) == GUILDS
    for place in (0, 1):
        for each in range(6):
            own = Counter(guild for pair, guild in pairs.items() if pair[place] == each)
            assert max(own.values()) <= 2, (place, each)
    for verb in range(len(VERBS)):
        own = {fact.guild: fact.answer for fact in FACTS if fact.verb == verb}
        # every answer is right for one or two guilds
        assert set(own.values()) == set(HABITS[VERBS[verb]])
        assert max(Counter(own.values()).values()) <= 2


def test_one_pair_of_each_guild_and_verb_is_held_out():
    held_out = [fact for fact in FACTS if fact.is_held_out]
    assert Counter((fact.guild, fact.verb) for fact in held_out) == Counter(
        product(range(GUILDS), range(len(VERBS)))
    )
    assert set(Counter(fact[:2] for fact in held_out).values()) == {2}


def test_documents_tell_the_right_answers_and_no_fact_that_is_held_out(tmp_path):
    folder = built(tmp_path, source="guilds", context=64, train_tokens=20_000, validation_tokens=2000)
    told = set()
    for split in ("train", "validation"):
        for text in texts(folder, split):
            for sentence in sentences(text.split()):
                told.add((read(sentence), sentence[-1]))
    facts = {(tuple(fact), fact.answer) for fact in FACTS if not fact.is_held_out}
    assert told == facts and len(facts) == 360
    assert not set(texts(folder, "train")) & set(texts(folder, "validation"))


def test_all_documents_of_a_length_are_equally_likely():
    # persons, and the verbs that are told of each
    written = 36 * 36 * 10
    fewest, most = SENTENCES
    lengths = Counter()
    for document in SAMPLE:
        number = len(sentences(document.words))
        lengths[number] += 1
        expected = -math.log(most + 1 - fewest) - number * math.log(written)
        assert document.log_probability == pytest.approx(expected)
    assert set(lengths) == set(range(fewest, most + 1))
    assert max(lengths.values()) < 1.5 * min(lengths.values())


def test_every_sentence_that_is_not_held_out_can_be_drawn_equally_often():
    drawn = [
        read(sentence)
        for document in islice(GRAMMAR.documents(7, "train"), 3000)
        for sentence in sentences(document.words)
    ]
    counts, mean = Counter(drawn), len(drawn) / 360
    assert all(abs(counts[each] - mean) < 5 * math.sqrt(mean) for each in counts)


def test_every_concept_is_documented_with_its_rule():
    rows = [f"| {concept.name} | {concept.rule} |" for concept in CONCEPTS]
    assert [line for line in DOC.splitlines() if line in rows] == rows


def test_the_documented_tables_are_those_of_the_grammar():
    for i, towns in enumerate(TOWNS):
        guilds = " | ".join(
            str(next(fact.guild + 1 for fact in FACTS if fact[:2] == (i, j))) for j in range(len(TRADES))
        )
        assert f"| {i + 1}: {', '.join(towns)} | {guilds} |" in DOC
    for v, verb in enumerate(VERBS):
        answers = " | ".join(
            next(fact.answer for fact in FACTS if (fact.verb, fact.guild) == (v, guild))
            for guild in range(GUILDS)
        )
        assert f"| {verb} | {answers} |" in DOC


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_a_concept_annotates_exactly_the_words_of_its_rule(concept):
    kind, number, *asked = concept.name.split("_")
    place = {"region": 1, "rank": 2, "guild": 3 if asked else 2}[kind]
    guild = {fact[:2]: fact.guild for fact in FACTS}
    for document in SAMPLE[:100]:
        meant = set()
        for i, sentence in enumerate(sentences(document.words)):
            region, rank, _ = read(sentence)
            value = {"region": region, "rank": rank, "guild": guild[region, rank]}[kind]
            if value == int(number) - 1:
                meant.add(6 * i + place)
        found = {word.position: word for word in concept.find(document)}
        assert set(found) == meant
        for word in found.values():
            required, optional = concept.cues(document, word)
            own = {"region": (1,), "rank": (2,), "guild": (1, 2, 3) if asked else (1, 2)}[kind]
            assert required == tuple((word.position - place + offset,) for offset in own) and not optional
            assert word.evidence_start == required[0][0]


def test_the_cues_of_a_guild_decide_it_and_less_does_not():
    decided, undecided = defaultdict(set), defaultdict(set)
    for document in SAMPLE:
        guilds = {
            word.position: concept.name
            for concept in CONCEPTS
            if concept.name.startswith("guild") and not concept.name.endswith("asked")
            for word in concept.find(document)
        }
        for position, name in guilds.items():
            town, trade = document.words[position - 1 : position + 1]
            decided[town, trade].add(name)
            undecided[town].add(name)
            undecided[trade].add(name)
    assert all(len(names) == 1 for names in decided.values())
    assert all(len(names) > 1 for names in undecided.values())


def test_tokens_have_the_annotations_of_their_words(tmp_path):
    folder = built(tmp_path, source="guilds", context=64, train_tokens=1000, validation_tokens=4000)
    files = (folder / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    rows = annotate(section(source="guilds", context=64), 0, *files).to_pylist()
    table = read_table(folder / "token.parquet").to_pylist()
    token = {(row["sequence"], row["position"]): row["token"] for row in table}
    assert {row["concept"] for row in rows} == {concept.name for concept in CONCEPTS}
    guild = {fact[:2]: fact.guild for fact in FACTS}
    for row in rows:
        kind, number, *asked = row["concept"].split("_")
        if kind == "guild":
            words = [token[row["sequence"], position] for (position,) in row["cues"]]
            region, rank, _ = read(["the", *words[:2], words[2] if asked else VERBS[0]])
            assert (
                guild[region, rank] == int(number) - 1
                and words[-1] == token[row["sequence"], row["position"]]
            )
    assert annotate(section(source="guilds", context=64, concepts=["rank_1"]), 0, *(
        folder / name for name in ("document.parquet", "tokenizer", "validation.zarr")
    ))["concept"].unique().to_pylist() == ["rank_1"]  # fmt: skip
    with pytest.raises(ValueError, match=r"no concept is called city; docs/guilds\.md lists them"):
        GRAMMAR.select(["city"])


@pytest.mark.parametrize("held_out", [False, True])
def test_questions_ask_for_each_fact_and_for_another_guild_s_answer(held_out):
    asked = questions(0, held_out, repeats=2)
    wanted = [fact for fact in FACTS if fact.is_held_out == held_out]
    assert Counter(each.fact for each in asked) == Counter(wanted * 2)
    for each in asked:
        words, others = each.text.split(), each.other_text.split()
        assert read(words) == tuple(each.fact) and read(others) == tuple(each.other)
        assert [a == b for a, b in zip(words, others, strict=True)] == [True, True, False, True]
        assert each.fact.answer != each.other.answer and not each.other.is_held_out
    assert questions(0, held_out, 2) == asked != questions(1, held_out, 2)


def test_the_most_frequent_answer_is_right_for_two_guilds():
    for verb in range(len(VERBS)):
        right = {fact.guild for fact in FACTS if fact.verb == verb and fact.answer == frequent_answer(verb)}
        assert len(right) == 2
