"""The project's case studies of logit differences can be read, and ask for what their models know."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from circuitloom.ablation.causal_effects import untouched
from circuitloom.cases.difference.drawn import draw_prompts, probe_prompts
from circuitloom.config.cases import Cases, DifferenceCase
from circuitloom.corpus.chronicle.grammar import vocabulary
from circuitloom.corpus.tokenizer import load_tokenizer, word_tokenizer
from circuitloom.language_model.model import load

FILES = Path(__file__).parents[2] / "config" / "cases"


def cases(file: str) -> dict[str, DifferenceCase]:
    read = TypeAdapter(Cases).validate_python(str(FILES / f"{file}.yaml"))
    return {name: case for name, case in read.items() if isinstance(case, DifferenceCase)}


def draw(case: DifferenceCase):
    return draw_prompts(case.prompts, case.slots, case.count, case.seed)


@pytest.mark.parametrize("file", ["chronicle", "english", "stories"])
def test_each_half_has_every_template_as_often(file):
    for case in cases(file).values():
        drawn = draw(case)
        assert len(drawn) >= case.count
        for half in ("finding", "testing"):
            assert sum(prompt.half == half for prompt in drawn) == len(drawn) / 2


def test_chronicle_has_the_words_that_its_cases_ask_for():
    tokenizer = word_tokenizer(vocabulary())
    assert set(cases("chronicle")) == {"indirect_object", "induction", "agreement"}
    for case in cases("chronicle").values():
        assert len(probe_prompts(draw(case), tokenizer, 128)) >= case.count


def test_the_model_of_stories_prefers_the_right_tokens(real_input):
    folder = str(real_input / "models" / "stories260K")
    model, tokenizer = load(folder, "float32"), load_tokenizer(folder)
    for case in cases("stories").values():
        probes = probe_prompts(draw(case), tokenizer, 128)
        preferred = torch.cat([probe.metric(untouched(model, probe)[None]) for probe in probes])
        assert (preferred > 0).float().mean() >= case.positive
        assert preferred.mean() >= case.difference
