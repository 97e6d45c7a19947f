"""Prompts are drawn from templates."""

import pytest

from circuitloom.config.templates import check_slots
from circuitloom.corpus.templates import fill_templates

NAMES = ["Ada", "Bo", "Cy", "Di"]
SLOTS = {"name": NAMES, "name_2": NAMES, "place": ["inn", "mill"]}
MANY = {name: [f"{name}{i}" for i in range(40)] for name in ("a", "b", "c")}


@pytest.mark.parametrize(("slots", "template"), [(SLOTS, "{name} {name_2} {place}"), (MANY, "{a} {b} {c}")])
def test_no_filling_is_drawn_twice(slots, template):
    filled = fill_templates([template], slots, 50, 0)
    assert len(set(filled)) == len(filled) == min(50, 4 * 3 * 2 if slots is SLOTS else 50)


def test_a_second_slot_never_has_the_word_of_the_first():
    filled = fill_templates(["{name} {name_2}"], SLOTS, 100, 0)
    assert len(filled) == 12
    assert all(len(set(text.split())) == 2 for (text,) in filled)


def test_a_group_of_templates_gets_the_same_words():
    for text, target in fill_templates(["{name} met {name_2}", "{name_2} vs {name}"], SLOTS, 12, 0):
        first, _, second = text.split()
        assert target == f"{second} vs {first}"


@pytest.mark.parametrize("slots", [SLOTS, MANY])
def test_fillings_depend_on_the_seed_alone(slots):
    template = " ".join(f"{{{name}}}" for name in slots)
    assert (
        fill_templates([template], slots, 10, 3)
        == fill_templates([template], slots, 10, 3)
        != fill_templates([template], slots, 10, 4)
    )


def test_a_larger_count_starts_with_the_same_fillings():
    for slots in (SLOTS, MANY):
        template = " ".join(f"{{{name}}}" for name in slots)
        assert fill_templates([template], slots, 20, 1)[:8] == fill_templates([template], slots, 8, 1)


def test_a_slot_that_nothing_fills_is_refused():
    with pytest.raises(ValueError, match=r"nothing fills \{town\}; add it to `slots`"):
        check_slots(["{name} of {town}"], SLOTS)
