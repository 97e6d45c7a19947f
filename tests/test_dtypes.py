"""A model in any number format goes through every stage; circuits have a number format of their own."""

import numpy as np
import pytest
from tests.activations.inputs import make_cache, make_order, make_tokens
from tests.models import CONTEXT, LAYERS, VOCABULARY, tiny_model

from circuitloom.ablation.behaviour import behaviour_tables
from circuitloom.activations.store import open_activations
from circuitloom.cases.context import open_context
from circuitloom.config import Evaluation, Run
from circuitloom.config.circuits import Behaviour, BehaviourPrompt, Circuits, Prompt, WeightsConfig
from circuitloom.config.features import Features
from circuitloom.core.tables import read_table
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.training.sweep import train_sweep
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.evaluation.score_rows import BaselineKey, score_rows
from circuitloom.evaluation.scoring import baseline_rows
from circuitloom.features.basis import dictionary_basis, neuron_basis
from circuitloom.features.logit_effects import write_logit_effects
from circuitloom.features.tabulation import tabulate
from circuitloom.language_model.model import load_model
from circuitloom.language_model.quality import cross_entropy
from circuitloom.weights.weight_tables import write_weight_tables

DTYPES = ("bfloat16", pytest.param("float16", marks=pytest.mark.slow))
TEXT = "w9 w20 w31 w9"
STRINGS = [f"w{number}" for number in range(VOCABULARY)]
TABLES = ("activation", "code", "example", "feature", "histogram")


def tiny_neo(folder):
    """GPT-Neo: LayerNorm, learned positions, global and local attention without scaling."""
    from tests.models import _save
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=16, num_layers=LAYERS, num_heads=2,
        intermediate_size=64, attention_types=[[["global", "local", "global"], 1]], window_size=8,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _save(GPTNeoForCausalLM, config, folder, 0)


@pytest.fixture(scope="module", params=["gpt2", "llama", "neo"])
def model_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param
    return tiny_neo(folder) if request.param == "neo" else tiny_model(request.param, folder)


def train(model, folder) -> list:
    """Train a small transcoder at each layer; returns the folders."""
    make_cache(folder / "activations", model, make_order(60))
    run = Run(name="tc", width=32, k=4, act="topk", batch=256, tokens=256 * 2)
    outputs = [folder / "tc" / f"layer{layer}" for layer in range(LAYERS)]
    for layer, output in enumerate(outputs):
        train_sweep([run], layer, folder / "activations", model, [output])
    return outputs


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_any_dtype_passes_every_stage(dtype, model_folder, tmp_path) -> None:
    model = load_model(model_folder, dtype, device="cpu")
    assert model.dtype == dtype
    tokens = make_tokens(20, seed=1)
    exact = load_model(model_folder, device="cpu")
    assert cross_entropy(model, tokens).masked == pytest.approx(cross_entropy(exact, tokens).masked, rel=0.02)

    # activations, dictionaries
    folders = train(model, tmp_path)
    store = open_activations(tmp_path / "activations", "mlp_out", 1, model)
    assert store.scale > 0 and store.norms.median > 0
    dictionaries = {("tc", layer): load_dictionary(folder) for layer, folder in enumerate(folders)}

    # evaluation
    held_out = load_sequences(tokens, slice(None))
    baselines = baseline_rows(model, ["mlp_out"], range(LAYERS), held_out, Evaluation(batch=8))
    by_site = {BaselineKey(row["site"], row["reads"], row["layer"]): row for row in baselines}
    rows = score_rows(model, dictionaries, [*dictionaries, ("tc", -1)], by_site, held_out, 8)
    for row in rows.values():
        numbers = [value for value in row.metric.values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()

    # features
    bases = [dictionary_basis("tc", 1, dictionaries["tc", 1]), neuron_basis("neurons", 1, model, None)]
    paths = [
        {name: tmp_path / basis.run / f"{name}.parquet" for name in (*TABLES, "logit")} for basis in bases
    ]
    tabulate(bases, model, tokens, STRINGS, Features(batch=8, examples=3, bands=1), paths)
    for basis, files in zip(bases, paths, strict=True):
        write_logit_effects(basis, model, STRINGS, 3, files["logit"])
        assert read_table(files["feature"])["n_tokens"].to_numpy().sum() > 0


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_circuits_have_their_own_dtype(dtype, model_folder, tmp_path) -> None:
    folders = train(load_model(model_folder, "bfloat16", device="cpu"), tmp_path)
    context = open_context(str(model_folder), str(model_folder), map(str, folders), ["tc"], CONTEXT, dtype)
    model, run = context.model, context.transcoders
    assert model.dtype == dtype and str(run[0].W_enc.dtype) == f"torch.{dtype}"
    config = Circuits(dtype=dtype, length=2, width=3)
    trace = context.tracer().trace(Prompt(text=TEXT, target="logit w9 vs w20"), config)
    assert trace.checks.identity_error < 1e-4
    behaviour = Behaviour(prompts=[BehaviourPrompt(text=TEXT, target="logit w9")], measured=3)
    tables = behaviour_tables("b", model, load_tokenizer(str(model_folder)), {"tc": run}, behaviour, CONTEXT)
    assert tables["causal"].num_rows > 0
    files = {layer: tmp_path / "weights" / str(layer) for layer in range(LAYERS)}
    small = WeightsConfig(blind_features=2, context_tokens=64, scored_tokens=64)
    write_weight_tables("tc", run, model, STRINGS, make_tokens(20, seed=1), small, files)
    assert (files[2] / "connection.parquet").is_file()
