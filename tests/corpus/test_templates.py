"""Prompts of templates: their halves, and the roles of their tokens."""

from circuitloom.config.circuits import BehaviourPrompt
from circuitloom.corpus.prompt_text import read_prompt
from circuitloom.corpus.templates import (
    FINDING,
    TESTING,
    align_positions,
    align_template,
    draw_prompts,
    group_prompts,
)
from circuitloom.corpus.tokenizer import word_tokenizer

TOKENIZER = word_tokenizer(("the", "lamps", "lamp", "maps", "map", "near", "were", "was"))
STRINGS = TOKENIZER.strings()


def read(texts):
    return [read_prompt(text, TOKENIZER, 16) for text in texts]


def test_prompts_without_slots_are_grouped_by_target_and_length_and_halved_in_turn():
    plural, singular = "logit were vs was", "logit was vs were"
    prompts = [
        BehaviourPrompt(text=text, target=target)
        for text, target in (
            ("the lamps near the map", plural),
            ("the lamp near the maps", singular),
            ("the maps near the lamp", plural),
            ("the maps", plural),
            ("the lamps near the lamp", plural),
        )
    ]
    drawn = group_prompts(prompts, read(prompt.text for prompt in prompts))
    assert [each.text for each in drawn] == [prompt.text for prompt in prompts]
    assert [each.template for each in drawn] == [0, 1, 0, 2, 0]
    assert [each.half for each in drawn] == [FINDING, FINDING, TESTING, FINDING, FINDING]


def test_positions_with_different_tokens_are_named_by_the_first_tokens():
    texts = ["the lamps near the map", "the maps near the map", "the lamp near the lamps"]
    aligned = align_positions("logit were vs was", [3, 5, 8], read(texts), STRINGS)
    assert aligned.roles == [list(range(6))] * 3
    assert aligned.names[1:] == ["the", "{lamps|maps|...}", "near", "the", "{map|lamps}"]
    assert aligned.text == "the {lamps|maps|...} near the {map|lamps}"


def test_roles_of_a_template_are_named_by_tokens_and_slots():
    slots = {"things": ["lamps", "maps", "lamps near maps"]}
    (template,) = [BehaviourPrompt(text="the {things} near the map", target="logit were vs was")]
    drawn = draw_prompts([template], slots, 3, 0)
    assert [each.half for each in drawn] == [FINDING, TESTING, TESTING]
    texts = read(each.text for each in drawn)
    aligned = align_template(template.text, template.target, slots, range(3), texts, STRINGS)
    assert aligned.names[1:] == ["the", "lamps", "near", "{things}", "near", "the", "map"]
    # a role that one prompt alone has is named by its token
    longest = max(range(3), key=lambda i: len(texts[i].token))
    assert aligned.roles[longest] == list(range(8))
    assert {tuple(roles) for roles in aligned.roles} == {(0, 1, 4, 5, 6, 7), tuple(range(8))}
