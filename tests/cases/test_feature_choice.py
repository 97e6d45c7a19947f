"""The feature of a case is the one with the best F1 for its concept, or that best separates texts from edits."""

import pyarrow as pa
import pytest
import torch
from tests.evaluation.inputs import make_held_out

from circuitloom.cases.feature.study import choose_by_concept, choose_by_contrast
from circuitloom.config.evaluation import Evaluation
from circuitloom.evaluation.concepts import SparseActivations


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
    assert (chosen.layer, chosen.feature, chosen.score) == (4, 3, 1.0)
    silent = {0: fires, 4: 0 * fires}
    assert choose_by_concept(codes, silent, concepts, "third", held_out, Evaluation()).layer == 0
    with pytest.raises(ValueError, match="no held-out token of the choosing documents has concept fourth"):
        choose_by_concept(codes, both, concepts, "fourth", held_out, Evaluation())
    with pytest.raises(ValueError, match="no feature fires at the last token of any text"):
        choose_by_concept(codes, {0: 0 * fires, 4: 0 * fires}, concepts, "third", held_out, Evaluation())


def test_the_feature_that_separates_texts_from_edits_is_chosen_with_a_threshold_between_them() -> None:
    on = {0: torch.tensor([[0.0, 5.0, 2.0], [0.0, 6.0, 9.0]]), 1: torch.zeros(2, 3)}
    off = {0: torch.tensor([[0.0, 1.0, 3.0], [9.0, 2.0, 0.0]]), 1: torch.ones(2, 3)}
    chosen = choose_by_contrast(on, off)
    assert (chosen.layer, chosen.feature, chosen.score) == (0, 1, 1.0)
    assert 2 < chosen.threshold < 5
    assert choose_by_contrast(on, off, (0, 2)).feature == 2
    with pytest.raises(ValueError, match=r"feature 1/0 does not fire at the last token"):
        choose_by_contrast(on, off, (1, 0))
