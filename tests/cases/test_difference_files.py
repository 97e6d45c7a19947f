"""The project's case studies of logit differences can be read and their models know the answers."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from circuitloom.ablation.behaviour import read_prompts
from circuitloom.ablation.causal_effects import original_logits
from circuitloom.config.cases import Cases, DifferenceCase
from circuitloom.corpus.chronicle.grammar import vocabulary
from circuitloom.corpus.templates import draw_prompts
from circuitloom.corpus.tokenizer import load_tokenizer, word_tokenizer
from circuitloom.language_model.model import load_model

FILES = Path(__file__).parents[2] / "config" / "cases"


def cases(file: str) -> dict[str, DifferenceCase]:
    read = TypeAdapter(Cases).validate_python(str(FILES / f"{file}.yaml"))
    return {name: case for name, case in read.items() if isinstance(case, DifferenceCase)}


def draw(case: DifferenceCase):
    return draw_prompts(case.prompts, case.slots, case.count, case.seed)


@pytest.mark.parametrize("file", ["chronicle", "english", "stories"])
def test_each_half_has_the_same_number_of_prompts_per_template(file):
    for case in cases(file).values():
        drawn = draw(case)
        assert len(drawn) >= case.count
        for half in ("finding", "testing"):
            assert sum(prompt.half == half for prompt in drawn) == len(drawn) / 2


def test_small_english_cases_are_the_english_ones_with_smaller_counts():
    files = [str(FILES / f"{name}.yaml") for name in ("english", "english-small")]
    english, small = (TypeAdapter(Cases).validate_python(files[: n + 1]) for n in range(2))
    assert set(small) == set(english)
    counts = {"count", "measured", "subsets", "compare", "traced", "prompts", "fillings", "tokens", "digits"}
    for name, case in small.items():
        changed = {key for key, value in case if value != getattr(english[name], key)}
        # `prompts` of a difference are its templates
        allowed = counts - {"prompts"} if isinstance(case, DifferenceCase) else counts
        assert changed and changed <= allowed
        if isinstance(case, DifferenceCase):
            halves = [prompt.half for prompt in draw(case)]
            assert halves.count("finding") == halves.count("testing") >= 8


def test_the_vocabulary_of_chronicle_has_the_words_of_its_cases():
    tokenizer = word_tokenizer(vocabulary())
    assert set(cases("chronicle")) == {"indirect_object", "induction", "agreement"}
    for case in cases("chronicle").values():
        assert len(read_prompts(draw(case), tokenizer, 128)[0]) >= case.count


def test_the_model_of_stories_prefers_the_right_tokens(real_input):
    folder = str(real_input / "models" / "stories260K")
    model, tokenizer = load_model(folder, "float32"), load_tokenizer(folder)
    for case in cases("stories").values():
        prompts, notes = read_prompts(draw(case), tokenizer, 128)
        assert notes == []
        preferred = torch.cat([prompt.metric(original_logits(model, prompt)[None]) for prompt in prompts])
        assert (preferred > 0).float().mean() >= case.positive
        assert preferred.mean() >= case.difference
