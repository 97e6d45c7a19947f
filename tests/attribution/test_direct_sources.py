"""The direct sources of a reader sum to its value; followed through all heads, they are direct effects."""

import pytest
import torch
from tests.attribution.inputs import (
    BROKEN,
    KINDS,
    PROMPT,
    logit_reader,
    make_linearized,
    node_key,
    through_head,
)
from tests.models import ARCHITECTURES
from torch import Tensor

from circuitloom.attribution.direct_effects import (
    direct_effects,
    feature_targets,
    source_columns,
)
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import (
    EMBEDDING,
    FEATURE,
    HEAD,
    POSITION,
    SourceDecomposition,
    StreamReader,
    direct_sources,
    feature_reader,
    target_reader,
)

SHORT = PROMPT[:3]


def total(sources: SourceDecomposition) -> float:
    return float(sources.value.sum()) + sources.error + sources.constant


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_of_features_and_logits_are_the_sum_of_their_direct_sources(architecture, kind, tiny):
    linearized = make_linearized(tiny(architecture), kind, BROKEN)
    for place in range(0, len(linearized.features), 3):
        activation = float(linearized.features.activation[place])
        assert total(direct_sources(linearized, feature_reader(linearized, place))) == pytest.approx(
            activation, abs=1e-9
        )
    halved = direct_sources(linearized, feature_reader(linearized, place, scale=-0.5))
    assert total(halved) == pytest.approx(-0.5 * activation, abs=1e-9)
    logits = linearized.captured.logits()
    for position in (3, 4, 10):
        sources = direct_sources(linearized, logit_reader(linearized, position))
        assert total(sources) == pytest.approx(float(logits[position, 10]), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_effect_of_a_head_is_the_sum_of_its_input_readers_direct_sources(architecture, kind, tiny):
    linearized = make_linearized(tiny(architecture), kind, BROKEN)
    for reader in (feature_reader(linearized, len(linearized.features) - 1), logit_reader(linearized, 9)):
        sources = direct_sources(linearized, reader)
        heads = (sources.kind == HEAD).nonzero()[:, 0]
        largest = heads[sources.value[heads].abs().topk(12).indices]
        for i in [*heads[::11].tolist(), *largest.tolist()]:
            through = through_head(linearized, reader, sources, i)
            value = float(sources.value[i])
            stream = linearized.captured.layers[int(sources.layer[i])].resid_pre[through.position]
            assert float(through.vector @ stream) == pytest.approx(value, abs=1e-9)
            assert total(direct_sources(linearized, through)) == pytest.approx(value, abs=1e-9)
        assert sources.value[largest].abs().min() > 1e-3


def expand(linearized: LinearizedModel, reader: StreamReader) -> tuple[Tensor, float]:
    """Follow all heads to their sources: effects of features, embeddings, positions and the constant; sum of errors."""
    columns = source_columns(linearized)
    sources = direct_sources(linearized, reader)
    row, error = torch.zeros(len(columns), dtype=torch.float64), sources.error
    row[columns.constant] = sources.constant
    starts = {EMBEDDING: columns.embeddings.start, POSITION: columns.position_embeddings.start}
    for i in range(len(sources)):
        kind, position = int(sources.kind[i]), int(sources.position[i])
        if kind == HEAD:
            below, below_error = expand(linearized, through_head(linearized, reader, sources, i))
            row, error = row + below, error + below_error
        else:
            row[int(sources.active[i]) if kind == FEATURE else starts[kind] + position] += sources.value[i]
    return row, error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_followed_through_all_heads_equal_direct_effects(architecture, kind, tiny):
    linearized = make_linearized(tiny(architecture), kind, SHORT)
    columns = source_columns(linearized)
    places = [(linearized.features.layer == layer).nonzero()[-1] for layer in linearized.dictionaries]
    for target in [feature_targets(linearized, place) for place in places]:
        effects = direct_effects(linearized, target)[0].clone()
        row, error = expand(linearized, target_reader(linearized, target))
        assert error == pytest.approx(float(effects[columns.errors].sum()), abs=1e-9)
        effects[columns.errors] = 0
        torch.testing.assert_close(row, effects, atol=1e-9, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_direct_sources_are_everything_that_wrote_to_the_stream_before_the_reader(architecture, tiny):
    linearized = make_linearized(tiny(architecture), token=BROKEN)
    place = int((linearized.features.layer == 1).nonzero()[-1])
    sources = direct_sources(linearized, feature_reader(linearized, place))
    heads = linearized.captured.layers[0].pattern.shape[0]
    position = int(linearized.features.position[place])
    # in parallel blocks the MLP does not read its block's attention
    attentions = [0] if linearized.captured.parallel else [0, 1]
    expected = {
        (HEAD, layer, head, s) for layer in attentions for head in range(heads) for s in range(position + 1)
    }
    features = linearized.features.feature[linearized.active_at(0, position)].tolist()
    expected |= {(FEATURE, 0, feature, position) for feature in features}
    expected |= {(EMBEDDING, 0, 0, position)}
    expected |= {(POSITION, 0, 0, position)} if architecture == "gpt2" else set()
    given = [node_key(sources, i) for i in range(len(sources))]
    assert len(given) == len(expected) and set(given) == expected
    for i in range(len(sources)):
        assert int(sources.active[i]) == (
            linearized.features.find(0, position, int(sources.index[i]))
            if int(sources.kind[i]) == FEATURE
            else -1
        )
