"""Components that show tokens, and plots."""

import pytest

from circuitloom.explorer import plots
from circuitloom.explorer.components import notes_of, shaded
from circuitloom.explorer.pages.prompt import GENERATE, generated_view, read_settings
from circuitloom.explorer.prompt_service import GeneratedTexts


def text_of(component) -> str:
    children = component.children if isinstance(component.children, list) else [component.children]
    return "".join(each if isinstance(each, str) else text_of(each) for each in children)


def test_parts_of_a_character_are_shaded_together() -> None:
    row = {
        "tokens": ["he ", "⟨E4⟩", "⟨B8⟩⟨AD⟩", "文", "⟨E4⟩"],
        "activations": [0.0, 1.0, 2.0, 0.0, 0.0],
        "place": 1,
    }
    shown = shaded(row, 4.0, "")
    assert text_of(shown) == "he 中文⟨E4⟩"
    (span,) = (each for each in shown.children if not isinstance(each, str))
    assert (span.children, span.title, span.className) == ("中", "1, 2", "here")
    assert span.style["backgroundColor"].endswith("0.325)")


def test_words_are_separated() -> None:
    row = {"tokens": ["he", "was", ""], "activations": [0.0, 1.0, 0.0], "place": 1}
    assert text_of(shaded(row, 1.0, " ")) == "he was  "


def test_the_shade_of_a_generated_token_is_its_kl() -> None:
    kl = [0.0, 0.25, 2.0]
    texts = GeneratedTexts("he was", ["caught", "by", "x"], ["caught", "in", "y"], " ", kl, ["a note"])
    note, (steered, untouched), summary = (each.children for each in generated_view(texts).children)
    assert note == "a note" and "mean 0.75 nats, largest 2 at 'x'" in summary
    assert text_of(steered.children[1]) == "he was caught by x "
    assert text_of(untouched.children[1]) == "he was caught in y "
    spans = [each for each in steered.children[1].children[1].children if not isinstance(each, str)]
    # full from 1 nat, and none at 0
    shades = [(each.children, each.style["backgroundColor"].rpartition(" ")[2]) for each in spans]
    assert shades == [("by", "0.163)"), ("x", "0.650)")]


def test_settings_of_generated_text_are_read_from_the_fields() -> None:
    expected = {"positions": "all", "tokens": 40, "temperature": 0.0, "top_k": None, "seed": 0}
    assert read_settings(dict(GENERATE)) == read_settings(dict.fromkeys(GENERATE)) == expected
    given = {"positions": "3, 4", "tokens": "5", "temperature": "0.5", "top_k": "7", "seed": "2"}
    assert list(read_settings(given).values()) == ["3,4", 5, 0.5, 7, 2]
    with pytest.raises(ValueError, match="top-k 'many': a whole number is needed"):
        read_settings(GENERATE | {"top_k": "many"})


def test_notes_are_paragraphs_with_their_invisible_characters() -> None:
    assert [each.children for each in notes_of(("a\n",))] == ["a↵"]
    assert notes_of(None) == []


def test_a_plot_of_effects_has_the_first_2000_measured_edges_and_says_of_how_many() -> None:
    rows = [{"effect": 3000.0 - i, "effect_frozen": 3000.0 - i, "effect_free": 1.0} for i in range(2500)]
    rows.insert(0, {"effect": 5000.0, "effect_frozen": None, "effect_free": None})
    figure = plots.effects(rows).to_plotly_json()["props"]["figure"]
    line, free, frozen = figure["data"]
    assert line["x"] == [1001.0, 3000.0]
    assert len(free["x"]) == len(frozen["x"]) == 2000 and frozen["x"][0] == 3000.0
    assert "2,000 largest of 2,500" in str(figure["layout"])
    assert "largest of" not in str(plots.effects(rows[:11]).to_plotly_json())
