"""A config is valid, or refused in one line that names the key and the remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitloom.config import Study, load_study
from circuitloom.config.corpus import HubDataset
from circuitloom.config.model_shape import shape_of
from circuitloom.config.yaml_files import refuse_repeated_keys

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "name": "x",
    "corpus": {"source": "chronicle"},
    "language_model": {"source": "pretrain"},
    "training": {"width": 2048, "k": 16},
    "dictionaries": {
        "sweep": {"k": [8, 16]},
        "saes": {"kind": "sae", "act": "relu", "sparsity": 1e-3, "seed": 1},
    },
}

BROKEN = {
    "a misspelt section": ({"trainig": {}}, r"^trainig: unknown key; did you mean training\?"),
    "a misspelt key": (
        {"corpus": {"source": "chronicle", "contxt": 9}},
        r"^corpus\.contxt: .*did you mean context\?",
    ),
    "a misspelt key of a sweep": ({"dictionaries": {"a": {"widht": 3}}}, r"^dictionaries\.a\.widht: .*width"),
    "a misspelt key of all sweeps": ({"training": {"widht": 3}}, r"^training\.widht: .*did you mean width\?"),
    "a word for a number": ({"training": {"width": "wide"}}, r"^training\.width: .*'wide'"),
    "a word among the numbers of a list": (
        {"training": {"width": [64, "wide"]}},
        r"^training\.width: .*'wide'",
    ),
    "a word for a number of a sweep": (
        {"dictionaries": {"a": {"width": "wide"}}},
        r"^dictionaries\.a\.width: .*'wide'",
    ),
    "a broken number": ({"training": {"width": "1.5e0"}}, r"^training\.width: .*integer.*1\.5"),
    "a share above one": (
        {"training": {"width": 64, "decay": "2e0"}},
        r"^training\.decay: .*less than or equal to 1",
    ),
    "an empty list": ({"dictionaries": {"a": {"k": []}}}, r"^dictionaries\.a\.k: an empty list makes no run"),
    "an empty list for all sweeps": ({"training": {"k": []}}, r"^training\.k: an empty list makes no run"),
    "a name that is a path": ({"dictionaries": {"a": {"name": "../x"}}}, r"^dictionaries\.a\.name: "),
    "a name that the evaluation uses": (
        {"dictionaries": {"a": {"name": "neurons"}}},
        r"^dictionaries\.a\.name: neurons .*choose another",
    ),
    "a number for a list": ({"activations": {"layers": 3}}, r"^activations\.layers: .*valid list, not 3"),
    "a word for a list": (
        {"activations": {"layers": "al"}},
        r"^activations\.layers: Input should be 'all', not 'al'",
    ),
    "a negative layer": (
        {"activations": {"layers": [-1]}},
        r"^activations\.layers\.0: .*greater than or equal to 0",
    ),
    "a word for a section": ({"corpus": 5}, r"^corpus"),
    "no such source": (
        {"corpus": {"source": "books"}},
        r"^corpus\.source: 'books' is no source; choose from",
    ),
    "no source": ({"corpus": {}}, r"^corpus\.source: missing"),
    "a missing section": ({"corpus": None}, r"^corpus"),
    "a layer the model lacks": (
        {"activations": {"layers": [7]}},
        r"^activations\.layers: the model has no layer 7; .*0 to 2",
    ),
    "an impossible k": ({"training": {"width": 4, "k": 9}}, r"k=8 exceeds width=4; choose k at most"),
    "two runs of one name": (
        {"dictionaries": {"a": {}, "b": {}}},
        r"^dictionaries\.b: two runs are named tc-topk16-2048 .*name",
    ),
    "heads that do not divide": (
        {"language_model": {"source": "pretrain", "heads": 5}},
        r"heads=5 does not divide d_model=128",
    ),
    "an unset variable": (
        {"language_model": {"source": "path", "path": "${NO_SUCH_VARIABLE}/x"}},
        r"language_model\.path: the environment variable NO_SUCH_VARIABLE is not set",
    ),
    "a folder without a model": (
        {"language_model": {"source": "path", "path": "/nowhere"}},
        r"language_model\.path: /nowhere/config\.json does not exist; name a folder",
    ),
    "a hub model out of reach": (
        {"language_model": {"source": "hub", "name": "no/such-model"}},
        r"language_model\.name: no/such-model .*HF_HUB_OFFLINE=0",
    ),
    "a site that is not cached": (
        {"dictionaries": {"a": {"kind": "sae", "site": "resid_mid"}}},
        r"^dictionaries\.a: reads resid_mid, which is not cached; add it to activations\.sites",
    ),
    "a transcoder of a stream that is not cached": (
        {"dictionaries": {"a": {"reads": "resid_mid"}}},
        r"^dictionaries\.a: reads resid_mid, which is not cached; add it to activations\.sites",
    ),
    "an SAE that reads another site": (
        {"dictionaries": {"a": {"kind": "sae", "reads": "resid_mid"}}},
        r"^dictionaries\.a: an SAE reads the site that it reconstructs; remove `reads`, or set kind: transcoder",
    ),
    "the paper's loss on the residual stream": (
        {"dictionaries": {"a": {"reads": "resid_mid", "loss": "paper", "act": "relu"}}},
        r"^dictionaries\.a: loss: paper is defined for the MLP's input after its norm, not for resid_mid; change one",
    ),
    "a transcoder of the residual stream": (
        {"dictionaries": {"a": {"site": "resid_pre"}}},
        r"^dictionaries\.a: a transcoder reconstructs mlp_out or mlp_added, not resid_pre; change site",
    ),
    "an output of MLPs without their cached inputs": (
        {"activations": {"sites": ["mlp_out"]}, "dictionaries": {"a": {"kind": "sae", "site": "mlp_added"}}},
        r"^activations\.sites: mlp_added is recomputed from mlp_in; add mlp_in, or mlp_added itself",
    ),
    "real text without a tokenizer": (
        {"corpus": {"source": "files", "train": "a.txt"}},
        r"^corpus\.tokenizer: .*name one",
    ),
    "a sequence longer than the model's": (
        {"corpus": {"source": "chronicle", "context": 1}},
        r"^corpus\.context: .*greater than or equal to 2",
    ),
    "batches of two sizes in a sweep": (
        {"dictionaries": {"a": {"batch": [1024, 2048], "k": [8, 16]}}},
        r"^dictionaries\.a: .*(batch|named)",
    ),
    "a path as the study's name": ({"name": "../x"}, r"^name: .*'\.\./x'"),
    "the paper's loss without relu": (
        {"training": {"width": 64, "loss": "paper"}},
        r"loss: paper is defined for act: relu",
    ),
    "a context longer than a given model's": (
        {"language_model": "LONG"},
        r"corpus\.context: 128 exceeds the model's 64",
    ),
    "prompts longer than the model's positions": (
        {"circuits": {"context": 129}},
        r"circuits\.context: 129 exceeds the model's 128; lower it",
    ),
    "a transcoder that reads resid_mid in parallel blocks": (
        {
            "language_model": "gpt_neox",
            "activations": {"sites": ["mlp_in"]},
            "dictionaries": {"a": {"reads": "resid_mid"}},
        },
        r"activations\.sites: this model runs attention and MLP in parallel .* resid_mid; use resid_pre",
    ),
    **{
        f"the parallel blocks of {kind} have no resid_mid": (
            {"language_model": kind, "activations": {"sites": ["mlp_in", "resid_mid"]}},
            r"activations\.sites: this model runs attention and MLP in parallel .* resid_mid; use resid_pre",
        )
        for kind in ("gpt_neox", "phi", "gptj", "codegen", "falcon", "cohere", "cohere2")
    },
    "an architecture that does not run": (
        {"language_model": "bloom"},
        r"language_model: .*config\.json: bloom models do not run: its MLP adds .*; choose another \(docs/models\.md\)",
    ),
}


def model_folder(folder: Path, **keys: Any) -> dict[str, Any]:
    sizes = {"n_layer": 3, "n_embd": 8, "n_head": 2, "n_positions": 1024, "vocab_size": 50}
    config = {"model_type": "gpt2", **sizes, **keys}
    (folder / "config.json").write_text(json.dumps(config))
    return {"source": "path", "path": str(folder)}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_config_is_refused_in_one_line(fault: str, tmp_path) -> None:
    change, message = BROKEN[fault]
    config = {**copy.deepcopy(GOOD), **change}
    if config["language_model"] == "LONG":
        config["language_model"] = model_folder(tmp_path, n_positions=64)
    elif isinstance(config["language_model"], str):
        config["language_model"] = model_folder(tmp_path, model_type=config["language_model"])
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        load_study(config)
    assert "\n" not in str(error.value)


REPEATED = {
    "circuits:\n  prompts:\n    p: {text: a}\n    p: {text: b}\n": "circuits.prompts.p: .* in lines 3 and 4; remove",
    "training: {k: 8}\nseed: 1\ntraining: {k: 4}\n": "^training: .* in lines 1 and 3; remove",
    "list: [{a: 1, b: 2, a: 3}]": "list.a: ",
    '{"seed": 1, "seed": 2}': "^seed: ",
}


@pytest.mark.parametrize("text", REPEATED)
def test_a_key_that_occurs_twice_is_refused_in_one_line(text: str, tmp_path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=REPEATED[text]) as error:
        refuse_repeated_keys(tmp_path / "study.yaml")
    assert "\n" not in str(error.value) and "study.yaml has this key twice" in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["a: &a {k: 1}\nb: {<<: *a, k: 2}\nc: {k: *a}\n", "a: &a [*a]", "", "a: b: c", "1: a\n'1': b\n"],
)
def test_other_files_are_left_to_their_reader(text: str, tmp_path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    refuse_repeated_keys(tmp_path / "study.yaml")


def test_a_case_that_occurs_twice_in_a_file_is_refused(tmp_path) -> None:
    file = tmp_path / "cases.yaml"
    file.write_text("mine: {kind: planted}\nmine: {kind: planted}\n")
    with pytest.raises(ValueError, match=r"mine: .*cases\.yaml has this key twice, in lines 1 and 2"):
        load_study({**copy.deepcopy(GOOD), "cases": str(file)})


def test_a_valid_config_gives_its_runs_and_layers() -> None:
    study = load_study(GOOD)
    assert list(study.runs) == ["tc-topk8-2048", "tc-topk16-2048", "sae-relu1e-3-2048-seed1"]
    assert study.layers == [0, 1, 2]
    assert study.runs["sae-relu1e-3-2048-seed1"].site_in == "mlp_out"


def test_a_run_of_mlp_added_is_named_after_it_and_needs_only_mlp_in() -> None:
    keys = {"site": ["mlp_out", "mlp_added"], "kind": ["transcoder", "sae"]}
    study = load_study({**GOOD, "dictionaries": {"a": keys}})
    assert {name: (run.site_in, run.site_out) for name, run in study.runs.items()} == {
        "tc-topk16-2048": ("mlp_in", "mlp_out"),
        "sae-topk16-2048": ("mlp_out", "mlp_out"),
        "tc-topk16-2048-mlp_added": ("mlp_in", "mlp_added"),
        "sae-topk16-2048-mlp_added": ("mlp_added", "mlp_added"),
    }
    assert study.sites == {"mlp_in", "mlp_out", "mlp_added"}
    # a transcoder of the stream needs the stream, and mlp_in for its targets
    sites = {"sites": ["mlp_in", "resid_mid"]}
    keys = {"reads": ["mlp_in", "resid_mid"], "site": ["mlp_out", "mlp_added"]}
    study = load_study({**GOOD, "activations": sites, "dictionaries": {"a": keys}})
    assert {name: (run.site_in, run.site_out) for name, run in study.runs.items()} == {
        "tc-topk16-2048": ("mlp_in", "mlp_out"),
        "tc-topk16-2048-mlp_added": ("mlp_in", "mlp_added"),
        "tc-topk16-2048-from_resid_mid": ("resid_mid", "mlp_out"),
        "tc-topk16-2048-mlp_added-from_resid_mid": ("resid_mid", "mlp_added"),
    }
    # a cached site needs no other
    only = {
        "activations": {"sites": ["mlp_added"]},
        "dictionaries": {"a": {"kind": "sae", "site": "mlp_added"}},
    }
    assert load_study({**GOOD, **only}).sites == {"mlp_added"}


def test_numeric_strings_are_numbers() -> None:
    config = {**GOOD, "training": {"width": "64", "learning_rate": "1e-3"}, "dictionaries": {"a": {"k": "4"}}}
    (run,) = load_study(config).runs.values()
    assert (run.name, run.width, run.k, run.learning_rate) == ("tc-topk4-64", 64, 4, 1e-3)


@pytest.mark.parametrize("number", ["1e6", "1E+6", 1e6, "1000000", "1_000_000"])
def test_whole_numbers_may_be_written_with_an_exponent(number: Any) -> None:
    corpus = {"source": "chronicle", "train_tokens": number}
    study = load_study({**GOOD, "corpus": corpus, "training": {"width": 64, "tokens": number}})
    assert study.corpus.train_tokens == 1_000_000
    assert {run.tokens for run in study.runs.values()} == {1_000_000}


@pytest.mark.parametrize(("dataset", "read"), [("${DATA}/copy", "/somewhere/copy"), ("org/name", "org/name")])
def test_a_data_set_is_a_path_with_variables_or_a_name_on_the_hub(dataset, read, monkeypatch) -> None:
    monkeypatch.setenv("DATA", "/somewhere")
    corpus = {"source": "hub", "dataset": dataset, "tokenizer": "gpt2"}
    study = load_study({**GOOD, "corpus": corpus})
    assert isinstance(study.corpus, HubDataset) and study.corpus.dataset == read


def test_a_runs_name_does_not_depend_on_the_notation_of_numbers() -> None:
    keys = {"width": "64", "skip": "false", "tokens": "100000.0", "decay": "2e-1"}
    (run,) = load_study({**GOOD, "training": keys, "dictionaries": {"a": {}}}).runs.values()
    assert run.name == "tc-topk32-64"


def test_a_run_is_named_after_the_keys_that_differ() -> None:
    keys = {"skip": [False, True], "learning_rate": [1e-3, 2e-3]}
    names = load_study({**GOOD, "training": {"width": 64}, "dictionaries": {"a": keys}}).runs
    assert list(names) == [
        "tc-topk32-64-learning_rate0.001",
        "tc-topk32-64-learning_rate0.002",
        "tc-topk32-64-skip-learning_rate0.001",
        "tc-topk32-64-skip-learning_rate0.002",
    ]


@pytest.mark.parametrize("name", ["tiny", "tinystories", "stories260k", "clt-vs-plt-two-hop"])
def test_studies_without_the_hub_are_valid(name: str, real_input: Path, monkeypatch) -> None:
    monkeypatch.setenv("REAL_INPUT", str(real_input))
    study = load_study(yaml.safe_load((ROOT / "config" / "studies" / f"{name}.yaml").read_text()))
    assert study.name == name
    assert study.runs


@pytest.mark.parametrize("name", ["gelu-1l", "gpt2-small", "pythia-410m", "pythia-1.4b"])
def test_studies_of_hub_models_are_valid(name: str, tmp_path) -> None:
    config = yaml.safe_load((ROOT / "config" / "studies" / f"{name}.yaml").read_text())
    assert config["language_model"].keys() - {"shape"} == {"source", "name"}
    sizes = {
        "gelu-1l": (1, 512),
        "gpt2-small": (12, 768),
        "pythia-410m": (24, 1024),
        "pythia-1.4b": (24, 2048),
    }
    layers, d_model = sizes[name]
    config["language_model"] = model_folder(tmp_path, n_layer=layers, n_embd=d_model)
    study = load_study(config)
    if name != "gelu-1l":
        assert {run.width for run in study.runs.values()} == {32 * d_model}
        assert {run.loss for run in study.runs.values()} == {"paper"}
    else:
        assert {run.site_out for run in study.runs.values()} == {"mlp_out", "resid_mid"}


def test_the_default_study_is_quickstart_and_needs_no_network() -> None:
    study = load_study(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()))
    assert study.name == "quickstart"
    assert "hub" not in (study.corpus.source, study.language_model.source)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 50},
        {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2,
         "max_position_embeddings": 16, "vocab_size": 50, "intermediate_size": 32},
        {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_ctx": 16, "d_vocab": 50, "d_mlp": 32},
    ],
)  # fmt: skip
def test_model_sizes_are_read_under_all_usual_names(config: dict[str, Any]) -> None:
    shape = shape_of(config)
    assert (shape.layers, shape.d_model, shape.d_mlp, shape.heads, shape.context, shape.vocabulary) == (
        2,
        8,
        32,
        2,
        16,
        50,
    )


def test_blocks_one_after_the_other_have_resid_mid(tmp_path) -> None:
    for kind, keys in {"olmo2": {}, "llama": {}, "gpt_neox": {"use_parallel_residual": False}}.items():
        model = model_folder(tmp_path, model_type=kind, **keys)
        study = load_study(
            {**GOOD, "language_model": model, "activations": {"sites": ["mlp_in", "resid_mid"]}}
        )
        assert "resid_mid" in study.sites and not study.shape.parallel


def text_study(tmp_path: Path, tokenizer: str | None, model: dict[str, Any] | None = None) -> Study:
    """A study that reads text from a local file."""
    corpus = {"source": "files", "train": "a.txt", "tokenizer": tokenizer}
    return load_study({**GOOD, "corpus": corpus, "language_model": model or model_folder(tmp_path)})


def test_the_tokenizer_is_the_configured_one_or_that_of_the_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model_folder(tmp_path)
    shape = {"layers": 3, "d_model": 8, "d_mlp": 32, "heads": 2, "context": 128, "vocabulary": 50}
    hub = {"source": "hub", "name": "gpt2", "revision": "v1", "shape": shape}
    assert text_study(tmp_path, None).tokenizer == (folder["path"], None)
    assert text_study(tmp_path, "gpt2").tokenizer == ("gpt2", None)
    assert text_study(tmp_path, None, hub).tokenizer == ("gpt2", "v1")
    # the model's folder names its tokenizer
    (tmp_path / "legacy").mkdir()
    legacy = {
        "n_layers": 3,
        "d_model": 8,
        "n_heads": 2,
        "n_ctx": 128,
        "d_vocab": 50,
        "tokenizer_name": "org/t",
    }
    (tmp_path / "legacy" / "config.json").write_text(json.dumps(legacy))
    model = {"source": "path", "path": str(tmp_path / "legacy")}
    assert text_study(tmp_path, None, model).tokenizer == ("org/t", "main")
    assert text_study(tmp_path, None, model).uses_hub


def test_a_study_uses_the_hub_if_any_of_its_names_is_one_of_the_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not load_study(GOOD).uses_hub
    assert not text_study(tmp_path, None).uses_hub
    assert text_study(tmp_path, "gpt2").uses_hub
    # a folder of this name goes first
    (tmp_path / "gpt2").mkdir()
    assert not text_study(tmp_path, "gpt2").uses_hub
    corpus = {"source": "files", "train": "a.txt", "tokenizer": "gpt2", "tokenizer_revision": "main"}
    assert load_study({**GOOD, "corpus": corpus, "language_model": model_folder(tmp_path)}).uses_hub
    assert load_study(
        {**GOOD, "corpus": {"source": "hub", "dataset": "org/text", "tokenizer": "gpt2"}}
    ).uses_hub
