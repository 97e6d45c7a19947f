"""Dictionaries larger than memory: mapped ones give what loaded ones give, and read only rows of features that fire."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.activations.inputs import make_tokens
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import CONTEXT, D_MODEL

from circuitloom.attribution.tracer import Tracer
from circuitloom.config.circuits import Circuits, FeatureChange, Prompt, SubgraphConfig
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries import dictionary as dictionaries
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    LayerDictionary,
    load_layer,
    load_layers,
    save_cross_layer_dictionary,
)
from circuitloom.dictionaries.dictionary import Encoder, load_dictionary, save_dictionary
from circuitloom.dictionaries.mapped_file import MAPPED, MappedFile
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.evaluation.replacement import reconstruct
from circuitloom.features.basis import dictionary_basis
from circuitloom.features.external_sort import encode_block

TEXT = "w9 w20 w31 w9 w44 w20 w17 w12 w60 w31"
ACTS = {"topk": {}, "relu": {"act": "relu", "k": None}, "threshold": {"act": "threshold", "k": None}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Every dictionary is large, and a block has seven features of the tiny model."""
    monkeypatch.setitem(MAPPED, "cpu", 0)
    monkeypatch.setattr(dictionaries, "BLOCK_ELEMENTS", 7 * D_MODEL)


def save(folder: Path, each: LayerDictionary, layers: list[int]) -> Path:
    path = folder / f"layer{each.layer}"
    if isinstance(each, CrossLayerDictionary):
        save_cross_layer_dictionary(each, path, layers, {})
    else:
        save_dictionary(each, path, {})
    return path


def saved(folder: Path, kind: str, change: Callable = lambda each: each, **keys) -> list[Path]:
    made = make_dictionaries(None, kind, **keys)
    return [save(folder, change(each), list(made)) for each in made.values()]


def to_bfloat16(each: LayerDictionary) -> LayerDictionary:
    return each.to("cpu", torch.bfloat16)


def keys_of(act: str) -> dict:
    return ACTS[act] | ({"threshold": torch.full((40,), 0.3)} if act == "threshold" else {})


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ACTS)
def test_a_mapped_dictionary_gives_what_a_loaded_one_gives(act, stored, tmp_path):
    (folder, *_) = saved(tmp_path, "skip transcoder", lambda each: each.to("cpu", stored), **keys_of(act))
    mapped, loaded = load_dictionary(folder, mapped=True), load_dictionary(folder)
    assert mapped.file is not None and loaded.file is None
    assert mapped.W_enc.dtype == mapped.W_dec.dtype == stored and mapped.dtype == torch.float32
    x = torch.randn(9, D_MODEL, generator=torch.Generator().manual_seed(3))
    for mine, theirs in zip(mapped.encode_sparse(x), loaded.encode_sparse(x), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(mapped(x.view(3, 3, -1)), loaded(x.view(3, 3, -1)))
    torch.testing.assert_close(reconstruct(mapped, x)[0], reconstruct(loaded, x)[0])
    feature = torch.tensor([0, 3, 39, 7, 7, 1, 2, 20, 11])
    torch.testing.assert_close(mapped.encode_entries(x, feature), loaded.encode_entries(x, feature))
    for name in ("decoder_norm", "encoder_norm", "row_norm"):
        assert torch.equal(getattr(mapped, name), getattr(loaded, name))
    assert torch.equal(mapped.row_norms(feature), loaded.row_norm[feature])
    assert torch.equal(mapped.decoder(mapped.layer), loaded.W_dec)
    none = torch.zeros(0, D_MODEL)
    assert reconstruct(mapped, none)[0].shape == none.shape


def silence(row: float) -> Callable[[LayerDictionary], LayerDictionary]:
    """Returns a change of a dictionary: half of the features never fire, and their decoder rows have the value."""

    def change(each: LayerDictionary) -> LayerDictionary:
        W_dec, b_enc = each.W_dec.clone(), each.b_enc.clone()
        W_dec[20:], b_enc[20:] = row, -1e4
        return to_bfloat16(replace(each, W_dec=W_dec, b_enc=b_enc))

    return change


@pytest.mark.parametrize("kind", ["transcoder", "skip cross-layer"])
def test_a_trace_through_mapped_dictionaries_reads_no_decoder_row_of_a_silent_feature(kind, tmp_path):
    change = FeatureChange(kind="clamp", features=["0/3", "1/7@4"], strength=2.0)
    prompt = Prompt(text=TEXT, changes=[change], target="logit w17")
    loaded = load_layers(saved(tmp_path / "loaded", kind, silence(1.0)))
    plain = make_tracer(tmp_path, loaded).trace(prompt, Circuits())
    mapped = load_layers(saved(tmp_path / "mapped", kind, silence(torch.nan)), mapped=True)
    found = make_tracer(tmp_path, mapped).trace(prompt, Circuits())
    assert all(each.file is not None for each in found.model.dictionaries.values())
    assert torch.equal(found.graph.node, plain.graph.node)
    for name in ("effect", "influence", "value", "remainder"):
        torch.testing.assert_close(
            getattr(found.graph, name), getattr(plain.graph, name), rtol=1e-4, atol=1e-4
        )
    for name in ("frozen", "free"):
        torch.testing.assert_close(
            getattr(found.checks, name), getattr(plain.checks, name), rtol=1e-3, atol=1e-3
        )
    for (_, _, mine), (_, _, theirs) in zip(found.checks.edits, plain.checks.edits, strict=True):
        torch.testing.assert_close(mine.frozen, theirs.frozen, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.free, theirs.free, rtol=1e-3, atol=1e-3)


def make_tracer(folder: Path, layers: dict[int, LayerDictionary]) -> Tracer:
    model = load_tiny("llama", folder)
    return Tracer(model, load_tokenizer(str(folder / "llama")), "tc", layers, CONTEXT)


@pytest.mark.parametrize("kind", ["transcoder", "skip cross-layer"])
def test_sets_of_features_of_mapped_dictionaries_are_ablated_as_those_of_loaded_ones(kind, tmp_path):
    folders = saved(tmp_path, kind, to_bfloat16)
    config = Circuits(subgraph=SubgraphConfig(methods=["total_effect"]))
    plain, found = (
        make_tracer(tmp_path, load_layers(folders, mapped=mapped)).trace(
            Prompt(text=TEXT, target="logit w17"), config
        )
        for mapped in (False, True)
    )
    assert all(each.file is not None for each in found.model.dictionaries.values())
    assert found.subgraphs is not None and plain.subgraphs is not None
    assert found.subgraphs.n_units == plain.subgraphs.n_units > 0
    assert found.subgraphs.none == pytest.approx(plain.subgraphs.none, abs=1e-4)
    assert abs(found.subgraphs.none - found.subgraphs.untouched) > 1e-3


def test_feature_tables_and_scores_read_no_decoder_row_of_a_silent_feature(tmp_path):
    (folder, *_) = saved(tmp_path, "transcoder", silence(torch.nan))
    mapped = load_layer(folder, mapped=True)
    x = torch.randn(9, D_MODEL)
    y_hat, firing = reconstruct(mapped, x)
    assert y_hat.isfinite().all() and not firing.fires[20:].any() and firing.fires[:20].any()
    assert dictionary_basis("tc", 0, mapped).encode(x)[1].max() < 20
    assert mapped.edit(x, x, lambda z: z * 2).isfinite().all()


@pytest.mark.parametrize("act", ACTS)
def test_an_encoder_is_read_block_by_block_and_its_pages_are_dropped(act, tmp_path, monkeypatch):
    (folder, *_) = saved(tmp_path, "transcoder", to_bfloat16, **keys_of(act))
    mapped = load_dictionary(folder, mapped=True)
    sizes, dropped = [], []
    blocks, release = Encoder._blocks, MappedFile.release

    def counted(self, x):
        for block, pre in blocks(self, x):
            sizes.append(pre.shape[1])
            yield block, pre

    monkeypatch.setattr(Encoder, "_blocks", counted)
    monkeypatch.setattr(MappedFile, "release", lambda self: (dropped.append(1), release(self)))
    mapped.encode_sparse(torch.randn(9, D_MODEL))
    assert sizes == [7, 7, 7, 7, 7, 5] and len(dropped) == 6


def test_a_small_dictionary_is_loaded_and_a_damaged_large_one_is_refused(tmp_path, monkeypatch):
    (folder, *_) = saved(tmp_path, "transcoder")
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"^[^\n]*delete it and train again"):
        load_dictionary(folder, mapped=True)
    weights.write_bytes(whole)
    monkeypatch.setitem(MAPPED, "cpu", 2**27)
    assert load_dictionary(folder, mapped=True).file is None


@pytest.mark.parametrize("act", ACTS)
def test_a_mapped_encoder_is_read_once_per_block_of_tokens_and_gives_the_same_block(act, tmp_path):
    model = load_tiny("llama", tmp_path)
    sequences = load_sequences(make_tokens(30), slice(None))
    (_, folder, *_) = saved(tmp_path, "transcoder", **keys_of(act))
    calls = []
    mapped, loaded = (
        dictionary_basis("tc", 1, load_dictionary(folder, mapped=mapped)) for mapped in (True, False)
    )
    encode = mapped.encode
    counted = replace(mapped, encode=lambda x: calls.append(len(x)) or encode(x))
    mine, theirs = encode_block([counted, loaded], model, sequences, 3)
    assert calls == [sequences.n_tokens]
    assert (mine.start == theirs.start).all() and (mine.offset == theirs.offset).all()
    assert abs(mine.value - theirs.value).max() < 1e-5 and len(mine.value) > 1000
