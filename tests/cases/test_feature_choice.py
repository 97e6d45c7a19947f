"""A case's feature has the best F1 for its concept, or separates texts from edits and matters; or there is none."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.evaluation.inputs import make_held_out
from tests.models import CONTEXT

from circuitloom.cases.context import CaseContext
from circuitloom.cases.feature.choice import (
    Candidate,
    ChosenFeature,
    candidate_activations,
    choose_by_concept,
    choose_candidate,
    choose_named,
    judge,
    separate,
    shortlist,
)
from circuitloom.config.cases import FeatureCase
from circuitloom.config.evaluation import Evaluation
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.evaluation.concept_matching import scored_activations
from circuitloom.evaluation.concepts import SparseActivations
from circuitloom.language_model.hooks import Site


def make_code(fires: torch.Tensor, feature: int, width: int = 6) -> SparseActivations:
    """A feature that fires at given positions, and another that fires everywhere."""
    n = len(fires)
    token = torch.cat([fires.nonzero()[:, 0], torch.arange(n)])
    features = torch.cat([torch.full((int(fires.sum()),), feature), torch.full((n,), (feature + 1) % width)])
    return SparseActivations(token, features, torch.ones(len(token)), width)


def test_the_feature_with_the_best_f1_for_the_concept_is_chosen_from_all_layers() -> None:
    held_out = make_held_out(sequences=30)
    token = held_out.token[held_out.scored]
    sequence, position = ((held_out.token % 3 == 0) & held_out.scored).nonzero().T
    rows = {
        "sequence": sequence.tolist(),
        "position": position.tolist(),
        "concept": ["third"] * len(sequence),
    }
    codes = {0: make_code(token % 3 == 1, 2), 4: make_code(token % 3 == 0, 3)}
    fires = torch.ones(2, 6)
    concepts, both = pa.table(rows), {0: fires, 4: fires}
    chosen = choose_by_concept(codes, both, concepts, "third", held_out, Evaluation())
    assert chosen.feature is not None and chosen.feature.name == "4/3" and chosen.feature.score == 1.0
    silent = {0: fires, 4: 0 * fires}
    other = choose_by_concept(codes, silent, concepts, "third", held_out, Evaluation()).feature
    assert other is not None and other.layer == 0
    with pytest.raises(ValueError, match="no held-out token of the choosing documents has concept fourth"):
        choose_by_concept(codes, both, concepts, "fourth", held_out, Evaluation())
    none = choose_by_concept(codes, {0: 0 * fires, 4: 0 * fires}, concepts, "third", held_out, Evaluation())
    assert none.feature is None
    assert none.reason == "no feature fires at the last token of any text of the finding half"


def test_a_named_feature_gets_a_threshold_between_texts_and_edits() -> None:
    on = {0: torch.tensor([[0.0, 5.0], [0.0, 6.0]])}
    off = {0: torch.tensor([[0.0, 1.0], [9.0, 2.0]])}
    chosen = choose_named(on, off, 0, 1).feature
    assert chosen is not None and (chosen.name, chosen.score) == ("0/1", 1.0)
    assert 2 < chosen.threshold < 5
    silent = choose_named(on, off, 0, 0)
    assert silent.feature is None and silent.reason.startswith("feature 0/0 does not fire at the last token")


# by contrast: what each planted feature does on 8 texts, on 8 edits, and on held-out text
TEXTS = torch.tensor([5.0, 6.0, 5.5, 6.5, 5.0, 6.0, 5.5, 6.5])
NONE = torch.zeros(8)
FEW, MANY = torch.tensor([6.0, 7.0, 8.0]), torch.full((400,), 6.0)
N_TOKENS = 1000


def judged(on: torch.Tensor, off: torch.Tensor, held_out: torch.Tensor, **keys) -> Candidate:
    case = FeatureCase(kind="feature", texts=["a"], edited=["b"], **keys)
    return judge(on, off, held_out, N_TOKENS, 3, 7, case)


def test_a_feature_that_fires_strongly_on_texts_alone_is_an_answer() -> None:
    good = judged(TEXTS, NONE, FEW)
    assert good.refused is None and good.feature.name == "3/7"
    assert (good.precision, good.recall, good.density) == (1.0, 1.0, 3 / N_TOKENS)
    assert good.effect_size == pytest.approx(float(TEXTS.mean() / torch.cat([TEXTS, NONE]).std(correction=0)))
    assert good.strength == pytest.approx(float(TEXTS.mean()) / 8)
    assert 0 < good.feature.threshold < 5
    assert good.sparsity == pytest.approx(1 - 3 / N_TOKENS / 0.1)
    # of features that separate equally well, the one that fires more rarely elsewhere
    often = judged(TEXTS, NONE, torch.cat([FEW, MANY[:50]]))
    assert often.refused is None and often.rank < good.rank
    # a feature of something rare does not fire on held-out text at all
    assert judged(TEXTS, NONE, torch.zeros(0)).refused is None


@pytest.mark.parametrize(
    ("on", "off", "held_out", "why"),
    [
        (0.005 * TEXTS, NONE, FEW, "fires too weakly on the texts"),
        (TEXTS, NONE, MANY, "fires on too much held-out text"),
        (TEXTS, TEXTS - 0.01, FEW, "fires on too many edits"),
        (torch.tensor([50.0, 0, 0, 0, 0, 0, 0, 0]), NONE, FEW, "fires on too few texts"),
    ],
)
def test_a_feature_that_does_not_matter_is_no_answer(on, off, held_out, why: str) -> None:
    assert judged(on, off, held_out).refused == why
    # even if it separates all texts from all edits
    if why == "fires too weakly on the texts":
        assert separate(on, off)[1] == 1.0


def test_a_threshold_is_at_least_a_share_of_the_largest_activation_on_held_out_text() -> None:
    strong = torch.tensor([20.0])
    assert judged(TEXTS, NONE, strong, strength=0.2).feature.threshold == 4.0
    assert judged(TEXTS, NONE, strong, strength=0.1).feature.threshold == pytest.approx(2.5)


def test_features_are_listed_by_effect_size_over_all_layers() -> None:
    noisy = TEXTS * torch.tensor([0.0, 2, 0, 2, 0, 2, 0, 2])
    on = {0: torch.stack([NONE, noisy], 1), 2: torch.stack([TEXTS, 0.01 * TEXTS], 1)}
    off = {0: torch.stack([TEXTS, NONE], 1), 2: torch.stack([0.1 * TEXTS, NONE], 1)}
    rows, n_live = shortlist(on, off, 2)
    # feature 0/0 fires on edits alone; size does not matter before activations on held-out text are known
    assert [row[1:] for row in rows] == [(2, 1), (2, 0)] and n_live == 3


def candidate(feature: int, **keys) -> Candidate:
    own = ChosenFeature(0, feature, 1.0, 1.0)
    return replace(Candidate(own, 1.5, 1.0, 1.0, 0.01, 0.5), **keys)


def test_precision_and_the_effect_of_ablation_decide_between_acceptable_features() -> None:
    first, second = candidate(1), candidate(2, precision=0.9)
    assert choose_candidate([second, first], 9).feature == first.feature
    # of features that separate equally well, the one that fires closer to its largest activation
    strong = candidate(4, strength=float("inf"))
    assert choose_candidate([first, strong], 9).feature == strong.feature and strong.rank == 1.5
    effects = {1: 0.1, 2: 2.0}
    chosen = choose_candidate([second, first], 9, lambda feature: effects[feature.feature])
    assert chosen.feature == second.feature and [each.effect for each in chosen.candidates] == [2.0, 0.1]
    harmless = choose_candidate([first], 9, lambda _: -0.1)
    assert harmless.feature is None and harmless.reason.endswith(
        "of the 1 with the largest effect size, 1 does not raise the metric"
    )


def test_no_feature_is_an_answer_whose_reasons_are_counted() -> None:
    weak = candidate(1, refused="fires too weakly on the texts")
    none = choose_candidate([weak, weak, candidate(3, refused="fires on too few texts")], 7)
    assert none.feature is None and none.acceptable == []
    assert none.reason == (
        "7 features fire more strongly at the last token of the finding half's texts than of their edits; of the 3 "
        "with the largest effect size, 2 fire too weakly on the texts, 1 fires on too few texts"
    )
    assert choose_candidate([], 0).reason.endswith("than of their edits; none fires")


def test_activations_of_candidates_equal_those_of_all_features(tmp_path) -> None:
    model = load_tiny("llama", tmp_path)
    dictionaries = make_dictionaries(model)
    context = CaseContext(model, load_tokenizer(str(tmp_path / "llama")), {"tc": dictionaries}, CONTEXT)
    held_out = make_held_out(sequences=7)
    wanted = {0: torch.tensor([3, 1]), 2: torch.tensor([5])}
    found = candidate_activations(context, held_out, wanted, batch=2)
    for layer, features in wanted.items():
        site = Site("mlp_in", layer)
        x = scored_activations(model, [site], held_out, 4)[site]
        z = dictionaries[layer].encode(x)
        own = torch.zeros_like(z)
        own[found[layer].token, found[layer].feature] = found[layer].value
        torch.testing.assert_close(own[:, features], z[:, features])
        assert set(found[layer].feature.tolist()) <= set(features.tolist())
