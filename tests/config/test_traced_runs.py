"""Which runs prompts are traced through, and which stages take a cross-layer transcoder."""

from typing import Any

import pytest

from circuitloom.config import Study, load_study

PROMPTS = {"one": {"text": "he was caught"}, "two": {"text": "she was", "run": "clt"}}
BEHAVIOUR = {"prompts": [{"text": "he was", "target": "logit by"}], "runs": ["clt"]}


def study(kinds: list[str], **changes: Any) -> Study:
    """A study with one run of each of `kinds`, named after its kind."""
    dictionaries = {kind: {"kind": kind, "name": {"transcoder": "tc"}.get(kind, kind)} for kind in kinds}
    keys = {"name": "x", "corpus": {"source": "chronicle"}, "language_model": {"source": "pretrain"}}
    return load_study({**keys, "training": {"width": 64, "k": 8}, "dictionaries": dictionaries, **changes})


def test_a_prompt_is_traced_through_its_run_or_transcoders_or_a_cross_layer_transcoder() -> None:
    both = study(["clt", "transcoder", "sae"], circuits={"prompts": PROMPTS})
    assert both.traceable == ["tc", "clt"]
    assert [both.run_of_prompt(name) for name in PROMPTS] == ["tc", "clt"]
    assert both.traced_run == "tc"
    alone = study(["clt"], circuits={"prompts": PROMPTS})
    assert [alone.run_of_prompt(name) for name in PROMPTS] == ["clt", "clt"]
    assert alone.traced_run == "clt"


TAKEN = {
    "weight tables": {"circuits": {"run": "clt"}},
    "components": {"circuits": {"behaviours": {"b": BEHAVIOUR}}},
    "a case study": {"cases": {"c": {"kind": "planted", "run": "clt", "runs": ["sae"]}}},
}


@pytest.mark.parametrize("use", TAKEN)
def test_a_cross_layer_transcoder_is_taken_where_its_name_is_given(use: str) -> None:
    study(["transcoder", "clt", "sae"], **TAKEN[use])


def test_a_prompt_is_not_traced_through_saes() -> None:
    with pytest.raises(
        ValueError, match=r"^circuits\.prompts\.one\.run: sae is no run of transcoders; choose from tc, clt"
    ):
        study(["transcoder", "clt", "sae"], circuits={"prompts": {"one": {"text": "a", "run": "sae"}}})
