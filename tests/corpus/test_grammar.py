import math
import random
from collections import Counter, defaultdict
from itertools import combinations, islice

import pytest

from circuitloom.corpus.chronicle import grammar
from circuitloom.corpus.chronicle.grammar import (  # fmt: skip
    LONGEST_DOCUMENT,
    LONGEST_SENTENCE,
    SENTENCES,
    end_probability,
    greater_than_prompts,
    vocabulary,
    write_episode,
)
from circuitloom.corpus.chronicle.slots import (  # fmt: skip
    Copy,
    DocumentState,
    Draw,
    Either,
    KnownFirst,
    KnownSecond,
    LaterYear,
    NewFirst,
    NewSecond,
    Other,
    template_distributions,
    templates,
)
from circuitloom.corpus.chronicle.vocabulary import CLASSES, NUMBERS
from circuitloom.corpus.grammars import GRAMMARS

SAMPLE = list(islice(GRAMMARS["chronicle"].documents(3, "validation"), 1500))


def sentences(behaviour):
    """(template, words) of each sentence of a behaviour, and the document's words before it."""
    for episode in SAMPLE:
        for start, template in episode.sentences:
            if template.behaviour == behaviour:
                yield template, episode.words[start : start + len(template.words)], episode.words[:start]


def marked(template, words, mark):
    return [words[position] for position, name in template.marks if name == mark]


def test_two_templates_never_write_the_same_sentence():
    for one, other in combinations(templates(), 2):
        if len(one.words) == len(other.words):
            apart = [not a & b for a, b in zip(one.supports, other.supports, strict=True)]
            assert any(apart), (one.text, other.text)


def test_a_sentence_ends_at_the_only_full_stop_in_it():
    for template in templates():
        assert [i for i, words in enumerate(template.supports) if "." in words] == [len(template.words) - 1]


def test_different_choices_give_different_words():
    for words in CLASSES.values():
        assert len(set(words)) == len(words)
    every = Counter(word for words in CLASSES.values() for word in words) + Counter(NUMBERS)
    assert every.most_common(1)[0][1] == 1


def test_probabilities_of_each_distribution_of_templates_sum_to_one():
    for distribution in template_distributions():
        assert sum(map(math.exp, distribution.log_p)) == pytest.approx(1)
        assert distribution.cumulative[-1] == 1


def probability(slot, word, memory):
    """p of `word` at `slot`, implemented from the documented notation; updates `memory`."""
    match slot:
        case Draw():
            allowed = [w for w in slot.words if not slot.unlike or w != memory.bound[slot.unlike]]
            p = allowed.count(word) / len(allowed)
            if slot.bind:
                memory.bound[slot.bind] = word
        case Copy():
            p = float(word == memory.bound[slot.source])
        case Either():
            p = [memory.bound[tag] for tag in slot.pair].count(word) / 2
            memory.bound[slot.bind] = word
        case Other():
            (left,) = {memory.bound[tag] for tag in slot.pair} - {memory.bound[slot.taken]}
            p = float(word == left)
        case LaterYear():
            later = [number for number in NUMBERS if number > memory.bound[slot.start]]
            p = later.count(word) / len(later)
        case NewFirst():
            new = set(slot.words) - {first for first, _ in memory.names}
            p = (word in new) / len(new)
            memory.bound["name"] = word
        case NewSecond():
            p = slot.words.count(word) / len(slot.words)
            memory.names.append((memory.bound["name"], word))
        case KnownFirst():
            p = [first for first, _ in memory.names].count(word) / len(memory.names)
            memory.bound["name"] = word
        case KnownSecond():
            p = float((memory.bound["name"], word) in memory.names)
    return p


def parses(words, memory):
    """Every way to derive the first sentence of `words`: (template, log p without the template's, memory)."""
    length = words.index(".") + 1
    for template in template_distributions()[len(memory.names)].templates:
        if len(template.words) == length and all(
            w in s for w, s in zip(words, template.supports, strict=False)
        ):
            after, p = DocumentState(names=list(memory.names)), 1.0
            for position, slot in template.slots:
                p *= probability(slot, words[position], after)
            if p:
                yield template, math.log(p), after


@pytest.mark.parametrize("episode", SAMPLE[:100])
def test_log_probability_is_that_of_the_only_derivation_of_the_text(episode):
    words, memory, log_p, count = episode.text.split(), DocumentState(), 0.0, 0
    total = len(words)
    while words:
        distribution = template_distributions()[len(memory.names)]
        ((template, share, memory),) = parses(words, memory)
        log_p += share + distribution.log_p[distribution.templates.index(template)]
        words, count = words[len(template.words) :], count + 1
        end = end_probability(count, total - len(words))
        log_p += math.log(1 - end if words else end)
    assert log_p == pytest.approx(episode.log_probability, abs=1e-9)


def test_probabilities_of_all_documents_of_a_small_grammar_sum_to_one(monkeypatch):
    words = ("<pronoun> felt <mood> but kept quiet .", "there was little <food> in <city> .")
    small = [t for t in templates() if t.text in words]
    distribution = template_distributions()[0]
    share = [1 / 4, 3 / 4]
    few = type(distribution)(tuple(small), (0.25, 1.0), tuple(map(math.log, share)))
    monkeypatch.setattr(grammar, "template_distributions", lambda: (few,))
    monkeypatch.setattr(grammar, "SENTENCES", (1, 2))
    sizes = [math.prod(len(slot.words) for _, slot in t.slots) for t in small]
    seen = defaultdict(set)
    for index in range(3000):
        episode = write_episode(0, "small", index)
        seen[tuple(small.index(t) for _, t in episode.sentences)].add(round(episode.log_probability, 9))
    # every document of the same templates is equally likely, so one of each is enough
    assert {len(scores) for scores in seen.values()} == {1} and len(seen) == 2 + 4
    total = sum(math.exp(next(iter(s))) * math.prod(sizes[t] for t in key) for key, s in seen.items())
    assert total == pytest.approx(1)


def test_entropy_estimate_agrees_with_frequencies_where_both_are_known():
    starts = Counter(
        episode.sentences[0][1] for episode in islice(GRAMMARS["chronicle"].documents(9, "train"), 4000)
    )
    first = template_distributions()[0]
    for template, log_p in zip(first.templates, first.log_p, strict=True):
        p = math.exp(log_p)
        assert abs(starts[template] / 4000 - p) < 5 * math.sqrt(p / 4000)


def test_a_document_is_a_function_of_seed_split_and_number_alone():
    assert list(islice(GRAMMARS["chronicle"].documents(3, "validation", 700), 3)) == SAMPLE[700:703]
    random.seed(1)
    assert write_episode(3, "validation", 5) == SAMPLE[5]
    assert (
        len({write_episode(seed, split, 5).text for seed in (3, 4) for split in ("train", "validation")}) == 4
    )


def test_a_document_between_two_bos_fits_a_context_of_128():
    fewest, most = SENTENCES
    # a sentence begins only if the longest one fits, or the document has too few
    assert fewest * LONGEST_SENTENCE <= LONGEST_DOCUMENT <= 128 - 2
    assert {len(episode.sentences) for episode in SAMPLE} == set(range(fewest, most + 1))
    assert max(len(episode.words) for episode in SAMPLE) <= LONGEST_DOCUMENT


def test_there_are_about_1500_words_and_each_can_be_written():
    words = vocabulary()
    assert 1400 <= len(words) <= 1650 and len(set(words)) == len(words)
    assert set(words) == {word for t in templates() for support in t.supports for word in support}


def test_end_years_are_uniform_over_the_later_years_of_the_same_century():
    share = []
    for template, words, _ in sentences("year_span"):
        (century,), (start,) = marked(template, words, "century"), marked(template, words, "start")
        (again,), (end,) = marked(template, words, "end_due"), marked(template, words, "end")
        assert again == century and int(end) > int(start)
        share.append((int(end) - int(start) - 0.5) / (99 - int(start)))
    assert abs(sum(share) / len(share) - 0.5) < 5 / math.sqrt(12 * len(share))


def test_every_semicolon_in_a_citation_list_is_followed_by_another_entry():
    entries = Counter()
    for _, words, _ in sentences("citation_list"):
        inside = words[words.index("(") + 1 : words.index(")")]
        assert [len(entry.split()) for entry in " ".join(inside).split(" ; ")] == [4] * (
            inside.count(";") + 1
        )
        entries[inside.count(";") + 1] += 1
    assert sorted(entries) == [1, 2, 3, 4]


def test_the_sense_of_caught_follows_from_the_word_before():
    before = defaultdict(set)
    for template, words, _ in sentences("caught"):
        (sense,) = {mark for _, mark in template.marks if mark != "caught_thing"}
        before[sense].add(words[words.index("caught") - 1])
    assert before["caught_passive"] == {"was"}
    assert not before["caught_active"] & before["caught_fire"] and len(before) == 3


def test_the_recipient_is_the_other_name():
    subjects = Counter()
    for template, words, _ in sentences("indirect_object"):
        ((one, two),) = [(words[i - 1], words[i + 1]) for i in range(1, 4) if words[i] == "and"]
        (giver,), (recipient,) = marked(template, words, "giver"), marked(template, words, "recipient")
        assert one != two and {giver, recipient} == {one, two}
        subjects[giver == one] += 1
    assert min(subjects.values()) > 0.4 * sum(subjects.values())


def test_a_rare_name_mentioned_again_has_the_same_second_word():
    again = 0
    for template, words, before in [*sentences("recall"), *sentences("two_mentions")]:
        for position, mark in template.marks:
            if mark == "name_again":
                past = [*before, *words[:position]]
                assert past[past.index(words[position]) + 1] == words[position + 1]
                again += 1
    assert again > 500


def test_a_verb_agrees_with_its_subject_and_not_with_the_noun_between_them():
    plural = {*CLASSES["things"], *CLASSES["occupations"], *CLASSES["animals"]}
    across = 0
    for _, words, _ in sentences("agreement"):
        verb = "were" if "were" in words else "was"
        assert (words[1] in plural) == (verb == "were")
        across += (words[words.index(verb) - 1] in plural) != (words[1] in plural)
    assert across > 100


@pytest.mark.parametrize(("opening", "closing"), [('"', '"'), ("(", ")"), ("[", "]")])
def test_brackets_and_quotations_close_within_their_sentence(opening, closing):
    for template in templates():
        places = [i for i, word in enumerate(template.words) if word in (opening, closing)]
        assert len(places) in (0, 2)
        assert [template.words[i] for i in places] in ([], [opening, closing])


def test_greater_than_prompts_are_sentences_of_the_grammar_cut_before_their_end_year():
    prompts = greater_than_prompts(0)
    assert [prompt.start for prompt in prompts] == list(range(2, 99))
    (template,) = [
        t for t in templates() if t.text.startswith("the <event> lasted") and t.text.endswith("@end .")
    ]
    for prompt, start in prompts:
        words = prompt.split()
        assert all(word in support for word, support in zip(words, template.supports, strict=False))
        assert (
            template.marks[-1] == (len(words), "end") and words[7] == f"{start:02d}" and words[-1] == words[6]
        )
