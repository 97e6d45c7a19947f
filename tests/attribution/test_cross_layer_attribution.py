"""Attribution through cross-layer transcoders: what is theirs alone. The other tests of attribution and ablation run
with them too (`KINDS`)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.attribution.inputs import (
    BOS,
    BROKEN,
    PROMPT,
    decoder_rows,
    load_tiny,
    make_cross_layer,
    make_dictionaries,
)
from tests.attribution.test_tracer import TEXT
from tests.models import ARCHITECTURES, CONTEXT, LAYERS, VOCABULARY, tiny_gpt2
from torch import Tensor

from circuitloom.ablation.feature_edits import apply_edits, edit_hooks, make_edits
from circuitloom.ablation.interventions import ablate_free, run_free
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import (
    direct_effects,
    feature_targets,
    logit_targets,
    total_effects,
)
from circuitloom.attribution.graph import Roots, adjacency
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.trace_tables import TraceRows
from circuitloom.attribution.tracer import Tracer, open_tracer, transcoder_runs
from circuitloom.config.circuits import Circuits, FeatureChange, Prompt
from circuitloom.core.layout import Layout
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    load_layers,
    require_one_output,
    save_cross_layer_transcoder,
)
from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import LanguageModel


def linearize(
    model: LanguageModel, transcoder: CrossLayerTranscoder, token: Tensor = PROMPT
) -> LinearizedModel:
    return LinearizedModel(capture_pass(model, read_weights(model), token), transcoder.layers, BOS)


def some_logits(linearized: LinearizedModel):
    """Three logits at the last position and one in the middle."""
    position = torch.tensor([10, 10, 10, 6])
    weights = torch.eye(VOCABULARY, dtype=linearized.captured.resid_final.dtype)[[20, 21, 22, 40]]
    return logit_targets(linearized, position, weights)


# Without reach: transcoders of one layer each


def as_cross_layer(dictionaries: dict[int, Dictionary]) -> CrossLayerTranscoder:
    """The same transcoders as a cross-layer transcoder with reach 0."""
    layers = []
    for layer, each in dictionaries.items():
        own = {**vars(each), "W_dec": each.W_dec[:, None], "outputs": (layer,), "scales": (1.0,)}
        layers.append(CrossLayerDictionary(**own))
    return CrossLayerTranscoder(layers)


@pytest.mark.parametrize("kind", ["skip transcoder", "one layer without"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_reach_all_tables_are_those_of_transcoders(architecture, kind, tmp_path):
    model = load_tiny(architecture, tmp_path)
    alone = make_dictionaries(model, kind)
    tokenizer = load_tokenizer(str(tmp_path / architecture))
    tables = []
    for dictionaries in (alone, as_cross_layer(alone).layers):
        tracer = Tracer(model, tokenizer, "run", dictionaries, CONTEXT)
        features = tracer.linearize(TEXT).features
        names = [
            f"{int(features.layer[i])}/{int(features.feature[i])}@{int(features.position[i])}"
            for i in (3, 50)
        ]
        changes = [FeatureChange(kind="clamp", features=names, strength=2.0)]
        trace = tracer.trace(Prompt(text=TEXT, target="logits", changes=changes), Circuits())
        rows = {name: rows for name, (_, rows) in TraceRows(trace, "x", tracer.strings).tables().items()}
        del rows["trace"][0]["seconds"]
        tables.append(json.dumps(rows))
    assert tables[0] == tables[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_reach_effects_are_those_of_transcoders_to_the_bit(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    alone = make_dictionaries(model, "skip transcoder")
    captured = capture_pass(model, read_weights(model), BROKEN)
    one, other = (LinearizedModel(captured, each, BOS) for each in (alone, as_cross_layer(alone).layers))
    assert torch.equal(one.errors, other.errors) and torch.equal(one.mlp_constant, other.mlp_constant)
    targets = some_logits(one)
    roots = Roots(targets, torch.ones(4))
    assert torch.equal(adjacency(one, roots), adjacency(other, roots))
    assert torch.equal(total_effects(one, targets), total_effects(other, targets))


# What features write, and errors


@pytest.mark.parametrize("skip", [False, True])
def test_an_error_is_what_all_features_that_write_to_the_layer_miss(skip, tmp_path):
    model = load_tiny("gpt2", tmp_path, "float64")
    transcoder = make_cross_layer(skip).to("cpu", torch.float64)
    linearized = linearize(model, transcoder, BROKEN)
    blocks = linearized.captured.layers
    y_hat = transcoder({layer: block.mlp_in for layer, block in enumerate(blocks)})
    for layer, block in enumerate(blocks):
        missed = torch.where((BROKEN != BOS)[:, None], block.mlp_out - y_hat[layer], block.mlp_out)
        torch.testing.assert_close(linearized.errors[layer], missed, atol=1e-12, rtol=0)


def test_a_feature_acts_through_its_outputs_below_the_target_and_each_adds_its_part(tmp_path):
    model = load_tiny("llama", tmp_path, "float64")
    transcoder = make_cross_layer().to("cpu", torch.float64)
    first = transcoder.layers[0]
    assert first.outputs == (0, 1, 2)

    def with_outputs(*kept: int) -> LinearizedModel:
        mask = torch.tensor([float(output in kept) for output in first.outputs])
        changed = replace(first, W_dec=first.W_dec * mask[:, None])
        return linearize(model, CrossLayerTranscoder([changed, transcoder.layers[1], transcoder.layers[2]]))

    def effects(linearized: LinearizedModel) -> tuple[Tensor, Tensor]:
        """Effects of features of layer 0 on features of layer 2, and on logits."""
        own = linearized.active_in_layer(0, len(PROMPT))
        places = (linearized.features.layer == 2).nonzero()[:, 0]
        on_features = direct_effects(linearized, feature_targets(linearized, places))[:, own]
        return on_features, direct_effects(linearized, some_logits(linearized))[:, own]

    whole = effects(with_outputs(0, 1, 2))
    parts = [effects(with_outputs(output)) for output in (0, 1, 2)]
    for number in (0, 1):
        total = torch.stack([part[number] for part in parts]).sum(0)
        torch.testing.assert_close(whole[number], total, atol=1e-12, rtol=0)
    on_features, on_logits = zip(*parts, strict=True)
    # a feature of layer 2 reads before the MLP of layer 2
    assert not on_features[2].any()
    assert min(each.abs().max() for each in (*on_features[:2], *on_logits)) > 1e-2


# Interventions in the model


def subtract(position: int, vector: Tensor):
    def edit(_x, y):
        y = y.clone()
        y[0, position] -= vector
        return y

    return edit


@pytest.mark.parametrize(
    ("architecture", "site", "reads"),
    [
        ("gpt2", "mlp_out", "mlp_in"),
        ("neox", "mlp_out", "mlp_in"),
        ("gemma3_text", "mlp_added", "mlp_in"),
        ("granite", "mlp_added", "resid_mid"),
    ],
)
def test_a_free_ablation_removes_the_feature_from_all_its_outputs(architecture, site, reads, tmp_path):
    """By hand: in a separate pass, decoder rows times the activation are subtracted at every output."""
    model = load_tiny(architecture, tmp_path)
    transcoder = make_cross_layer(True, site_out=site, site_in=reads)
    local = linearize(model, transcoder)
    places = torch.arange(0, len(local.features), 9)
    measured = ablate_free(model, local, places, [some_logits(local)])
    before = model.logits(PROMPT[None])[0]
    later = 0
    for i, place in enumerate(places.tolist()):
        layer, position = int(local.features.layer[place]), int(local.features.position[place])
        z = local.features.activation[place]
        rows = decoder_rows(transcoder.layers[layer], int(local.features.feature[place]))
        later += len(rows) > 1
        with edited(model, {Site(site, output): subtract(position, z * row) for output, row in rows.items()}):
            after = model.logits(PROMPT[None])[0]
        change = (before - after)[10, 20:23]
        # logits are demeaned: their differences are those of logits
        torch.testing.assert_close(measured[i, :3].diff(), change.diff(), atol=1e-5, rtol=0)
    assert later > 3


@pytest.mark.parametrize("architecture", ["gpt2", "neox"])
def test_a_free_edit_of_two_layers_reads_what_the_first_edit_left(architecture, tmp_path):
    """By hand in two passes: the second layer's activation is read in the pass with the first edit."""
    model = load_tiny(architecture, tmp_path)
    transcoder = make_cross_layer(act="relu", k=None)
    local = linearize(model, transcoder)
    places = [
        int(((local.features.layer == layer) & (local.features.position == 5)).nonzero()[0])
        for layer in (0, 1)
    ]
    (one, two) = (int(local.features.feature[place]) for place in places)
    names = [f"0/{one}@5", f"1/{two}@5"]
    edits = make_edits(local, FeatureChange(kind="clamp", features=names, strength=3.0))
    outcome = apply_edits(model, local, edits, [some_logits(local)])

    def writes(layer: int, feature: int, change: Tensor) -> dict[int, Tensor]:
        return {m: -change * row for m, row in decoder_rows(transcoder.layers[layer], feature).items()}

    first = writes(0, one, 3.0 - local.features.activation[places[0]])
    with edited(model, {Site("mlp_out", m): subtract(5, vector) for m, vector in first.items()}):
        x = capture(model, PROMPT[None], [Site("mlp_in", 1)])[Site("mlp_in", 1)][0, 5]
    z = transcoder.layers[1].encode(x)[two]
    assert abs(float(z - local.features.activation[places[1]])) > 1e-2
    both = first
    for m, vector in writes(1, two, 3.0 - z).items():
        both[m] = both[m] + vector
    with edited(model, {Site("mlp_out", m): subtract(5, vector) for m, vector in both.items()}):
        logits = model.logits(PROMPT[None])[0]
    logits = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(outcome.free, logits[[10, 10, 10, 6], [20, 21, 22, 40]], atol=1e-4, rtol=1e-4)
    # frozen: the direct effects of both features, scaled
    effects = direct_effects(local, some_logits(local))[:, places]
    expected = effects @ (3.0 / local.features.activation[places] - 1)
    torch.testing.assert_close(outcome.frozen - outcome.before, expected, atol=1e-4, rtol=1e-4)


def test_a_pass_that_ends_early_leaves_nothing_for_the_next_one(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    local = linearize(model, make_cross_layer())
    edits = make_edits(local, FeatureChange(kind="clamp", features=["0/3", "1/5"], strength=2.0))
    hooks, fresh = edit_hooks(local, edits), edit_hooks(local, edits)
    with edited(model, hooks):
        # ends before layers 1 and 2, to which features of layer 0 write
        capture(model, PROMPT.flip(0)[None], [Site("resid_pre", 1)])
    targets = [some_logits(local)]
    assert torch.equal(
        run_free(model, local, 1, hooks, targets)[0], run_free(model, local, 1, fresh, targets)[0]
    )


# Files and refusals


def make_study(root: Path) -> Layout:
    """A folder of results with a model, tokens, a run `clt` of layers 0 and 2, and a run `tc`."""
    layout = Layout(root)
    tiny_gpt2(layout.model)
    layout.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    layout.tokenizer.symlink_to(layout.model)
    token = torch.full((2, CONTEXT), 9)
    token[:, 0] = BOS
    blocks = [(token.numpy().astype("uint16"), torch.zeros_like(token).numpy().astype("int32"))]
    write_tokens(
        layout.tokens("validation"), blocks, 2, {"bos_id": BOS, "separator_id": BOS, "vocabulary": VOCABULARY}
    )
    made = make_cross_layer(True, layers=(0, 2))
    save_cross_layer_transcoder(made, {layer: layout.dictionary("clt", layer) for layer in (0, 2)}, {})
    for layer, each in make_dictionaries(None).items():
        save_dictionary(each, layout.dictionary("tc", layer), {})
    return layout


def test_a_saved_transcoder_is_opened_and_traced(tmp_path):
    layout = make_study(tmp_path)
    assert transcoder_runs(layout.root) == ["clt", "tc"]
    tracer = open_tracer(layout.root, "clt")
    trace = tracer.trace(Prompt(text=TEXT, target="logits"), Circuits())
    assert trace.model.writers == {0: [0], 1: [], 2: [0, 2]}
    token = trace.model.captured.token
    expected = linearize(tracer.language_model, make_cross_layer(True, layers=(0, 2)), token)
    assert torch.equal(trace.model.errors, expected.errors)
    assert torch.equal(trace.model.errors[1], trace.model.captured.layers[1].mlp_out)
    assert trace.checks.identity_error < 1e-4 and trace.checks.frozen_error < 1e-4
    assert {
        row["run"] for row in TraceRows(trace, "x", tracer.strings).nodes() if row["kind"] == "feature"
    } == {"clt"}
    assert sorted(open_tracer(layout.root, "tc").dictionaries) == list(range(LAYERS))
    # the script of the stage loads the folders of the layers
    folders = [layout.dictionary("clt", layer) for layer in (0, 2)]
    for layer, each in load_layers(folders).items():
        assert torch.equal(each.W_dec, tracer.dictionaries[layer].W_dec)
    with pytest.raises(ValueError, match=r"^[^\n]*transcoder of layers \[0, 2\][^\n]*$"):
        load_layers(folders[:1])


def test_layers_that_do_not_belong_together_are_refused(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    captured = capture_pass(model, read_weights(model), PROMPT)
    layers = make_cross_layer().layers
    with pytest.raises(
        ValueError, match=r"^layer 0: its features write to layer 1, which has no dictionary; [^\n]+$"
    ):
        LinearizedModel(captured, {0: layers[0], 2: layers[2]}, BOS)
    others = make_cross_layer(site_out="mlp_added").layers
    with pytest.raises(ValueError, match=r"write to mlp_out of layer 1, and .* reconstructs mlp_added"):
        LinearizedModel(captured, {**layers, 1: others[1]}, BOS)
    with pytest.raises(ValueError, match=r"^layer 1: the dictionary is that of layer 2"):
        LinearizedModel(captured, {**make_dictionaries(model), 1: make_dictionaries(model)[2]}, BOS)


def test_what_needs_one_output_refuses_a_cross_layer_transcoder():
    with pytest.raises(
        ValueError,
        match=r"^layer 0: this cannot use a cross-layer transcoder[^\n]*; name a run of transcoders$",
    ):
        require_one_output(make_cross_layer().layers[0], "this")
