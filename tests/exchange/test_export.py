"""An export is complete, continues after a kill, writes only what changed, and refuses what a format cannot hold."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.exchange.results import (
    LLAMA,
    SAE,
    WIDTH,
    D,
    random_dictionary,
    random_transcoder,
    write_results,
    write_scores,
)

from circuitloom.cli import main
from circuitloom.config.dictionaries import Run
from circuitloom.config.export_formats import EXPORT_FORMATS, formats_of
from circuitloom.dictionaries.dictionary import save_dictionary
from circuitloom.exchange.export import export_run
from circuitloom.exchange.exporters import EXPORTERS
from circuitloom.exchange.stored_run import StoredRun, describe_model
from circuitloom.result_formats import RESULT_EXPORTS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results with a run of transcoders of three layers."""
    return write_results(tmp_path / "study", {layer: random_dictionary(layer) for layer in range(3)})


def front_matter(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---\n")[1])


def test_every_format_of_the_list_is_written() -> None:
    assert list(EXPORTERS) == formats_of("dictionaries")
    assert list(RESULT_EXPORTS) == [*formats_of("graphs"), *formats_of("features")]
    assert set(EXPORTERS) | set(RESULT_EXPORTS) == set(EXPORT_FORMATS)


def test_an_export_records_the_sha256_of_every_file(results: Path, tmp_path: Path) -> None:
    result = export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "out")
    assert (result.written, result.kept) == ([0, 1, 2], [])
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    files = {name: digest for entry in record["layers"].values() for name, digest in entry["files"].items()}
    files |= record["files"]
    assert set(files) == {"config.yaml", *(f"layer_{i}.safetensors" for i in range(3))}
    card = (tmp_path / "out" / "README.md").read_text()
    for name, digest in files.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
        assert f"| `{name}` | `{digest}` |" in card
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*files, "export.json", "README.md"}
    assert result.bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    # nothing stays beside the folder
    assert {file.name for file in tmp_path.iterdir()} == {"study", "out"}


def test_a_second_export_writes_only_the_layers_that_changed(results: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", StoredRun(results, "some")
    export_run("circuit-tracer", run, out)
    assert export_run("circuit-tracer", run, out).kept == [0, 1, 2]
    changed = random_dictionary(1, act="threshold")
    save_dictionary(changed, results / "dictionaries" / "some" / "layer1", {})
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    again = export_run("circuit-tracer", run, out)
    assert (again.written, again.kept) == ([1], [0, 2])
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert {name for name in before if before[name] != after[name]} == {"layer_1.safetensors"}
    torch.testing.assert_close(
        load_file(out / "layer_1.safetensors")["activation_function.threshold"], changed.threshold
    )


def test_a_damaged_file_is_written_again(results: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", StoredRun(results, "some")
    export_run("circuit-tracer", run, out)
    content = (out / "layer_2.safetensors").read_bytes()
    # the same size, so that only the checksum tells
    (out / "layer_2.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert export_run("circuit-tracer", run, out).written == [2]
    assert (out / "layer_2.safetensors").read_bytes() == content


def test_a_killed_export_continues_with_the_next_layer(results: Path, tmp_path: Path, monkeypatch) -> None:
    class Killed(type(EXPORTERS["circuit-tracer"])):
        def write_layer(self, dictionary, folder, model) -> None:
            if dictionary.layer == 1:
                raise KeyboardInterrupt
            super().write_layer(dictionary, folder, model)

    out, run = tmp_path / "out", StoredRun(results, "some")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(EXPORTERS, "circuit-tracer", Killed())
        export_run("circuit-tracer", run, out)
    assert not out.exists()
    # without config.yaml, no reader takes the folder for a set
    assert [file.name for file in (tmp_path / "out.partial" / "export").glob("*.*")] != []
    assert not (tmp_path / "out.partial" / "export" / "config.yaml").exists()
    result = export_run("circuit-tracer", run, out)
    assert (result.written, result.kept) == ([1, 2], [0])


def test_layers_can_be_named_and_files_of_others_are_removed(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run("saelens", StoredRun(results, "some"), out)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"layer_0", "layer_1", "layer_2"}
    result = export_run("saelens", StoredRun(results, "some", [2]), out)
    assert (result.written, result.kept) == ([], [2])
    assert {path.name for path in out.iterdir()} == {"layer_2", "export.json", "README.md"}


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    topk = {0: random_dictionary(0), 1: random_dictionary(1, act="topk")}
    results = write_results(tmp_path / "study", topk)
    for name, words in (
        ("circuit-tracer", "layer 1 is topk with k=3, layer 0 relu"),
        ("saelens", "layer 1: SAELens has no transcoder of act topk"),
        ("sparsify", "layer 0: sparsify has topk only, and this dictionary is relu"),
    ):
        with pytest.raises(ValueError, match=words):
            export_run(name, StoredRun(results, "some"), tmp_path / name)
        assert not list(tmp_path.glob(f"{name}*"))


def test_files_that_are_no_export_of_the_run_are_left_alone(results: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", StoredRun(results, "some")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an export; choose another folder"):
        export_run("saelens", run, out)
    assert (out / "mine.txt").read_text() == "mine"
    export_run("saelens", run, tmp_path / "other")
    for changes in ({"format_name": "circuit-tracer"}, {"model_name": "another"}, {"version": "2"}):
        arguments = {"format_name": "saelens", "run": run, "output": tmp_path / "other", **changes}
        with pytest.raises(ValueError, match="holds run some for saelens, exported with other settings"):
            export_run(**arguments)


def test_missing_runs_and_layers_are_named(results: Path) -> None:
    with pytest.raises(ValueError, match="has no run other; choose from some"):
        StoredRun(results, "other")
    with pytest.raises(ValueError, match="no dictionary of layer 5; choose from 0, 1, 2"):
        StoredRun(results, "some", [0, 5])


def test_the_model_is_named_after_the_hub_or_its_folder_or_the_study(tmp_path: Path) -> None:
    made = {0: random_dictionary(0)}
    for study, origin, expected in (
        ("a", {"source": "hub", "name": "org/model", "revision": "main"}, ("org/model", "org/model")),
        ("b", {"source": "path", "path": "/models/local"}, ("local", None)),
        ("c", None, ("c", None)),
    ):
        model = describe_model(write_results(tmp_path / study, made, origin=origin))
        assert (model.name, model.hub_name) == expected
    assert describe_model(tmp_path / "a", "mine").name == "mine"


def test_the_card_states_licence_model_scores_and_config(tmp_path: Path) -> None:
    made = {layer: random_dictionary(layer, act="topk", **SAE) for layer in (0, 1)}
    origin = {"source": "hub", "name": "org/model", "revision": "main"}
    results = write_results(tmp_path / "study", made, origin=origin)
    write_scores(results, "some", 1, fvu=0.25, ce_recovered_zero=0.5, delta_ce=0.125, l0=3.0, alive=0.75)
    export_run("saelens", StoredRun(results, "some"), tmp_path / "out", license="mit")
    assert front_matter(tmp_path / "out" / "README.md") == {
        "license": "mit", "library_name": "saelens", "tags": ["sparse-autoencoder", "mechanistic-interpretability"],
        "base_model": "org/model",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    # dead is 1 - alive
    assert "| 1 | 0.25 | 0.5 | 0.125 | 3 | 0.25 |  |" in card
    assert "name: some\nwidth: 20" in card
    assert 'SAE.load_from_disk(f"{folder}/layer_0")' in card


def test_the_card_of_an_imported_run_states_where_its_weights_came_from(tmp_path: Path) -> None:
    made = {layer: random_dictionary(layer, act="topk", **SAE) for layer in (0, 1)}
    run = Run(
        name="some", kind="sae", site="mlp_out", act="topk", k=3, width=20, files="org/saes", revision="c0ffee",
        subfolder="l0_3/layer_{layer}", format="sparsify",
    )  # fmt: skip
    sources = {layer: f"sae.safetensors of org/saes/l0_3/layer_{layer} (revision c0ffee)" for layer in made}
    keys = run.model_dump(mode="json")
    results = write_results(tmp_path / "study", made, config=keys, sources=sources)
    export_run("saelens", StoredRun(results, "some"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Imported by circuitloom in the study `study`" in card and "## Training" not in card
    text, after = card.split("## Imported from\n\n```yaml\n")[1].split("```", 1)
    # SAEs have no `reads`, and no key about training applies
    assert yaml.safe_load(text) == {
        "kind": "sae", "name": "some", "act": "topk", "k": 3, "width": 20, "site": "mlp_out", "skip": False,
        "files": "org/saes", "subfolder": "l0_3/layer_{layer}", "revision": "c0ffee", "format": "sparsify",
    }  # fmt: skip
    for layer, source in sources.items():
        assert f"| {layer} | `{source}` |" in after


def test_the_card_of_a_trained_run_has_no_keys_of_imports_and_no_k_that_does_not_apply(
    tmp_path: Path,
) -> None:
    keys = Run(name="some", act="relu", width=20).model_dump(mode="json")
    results = write_results(tmp_path / "study", {0: random_dictionary(0)}, config=keys)
    export_run("saelens", StoredRun(results, "some"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained by circuitloom in the study `study`" in card
    shown = yaml.safe_load(card.split("## Training\n\n```yaml\n")[1].split("```", 1)[0])
    left_out = {"k", "files", "subfolder", "revision", "format", "largest_fvu", "initial_rate"}
    assert set(keys) - set(shown) == left_out
    assert shown == {key: keys[key] for key in shown}


def test_a_card_without_licence_and_scores_says_so(results: Path, tmp_path: Path) -> None:
    export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "out")
    assert front_matter(tmp_path / "out" / "README.md") == {
        "license": "unknown", "library_name": "circuit-tracer", "tags": ["transcoder", "mechanistic-interpretability"]
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not scored: the evaluation of the study has not run." in card


def test_the_code_on_a_card_has_nothing_to_fill_in_but_where_a_local_model_lies(tmp_path: Path) -> None:
    made = {layer: random_dictionary(layer) for layer in range(3)}
    for name, origin in {"local": None, "hub": {"source": "hub", "name": "org/model"}}.items():
        results = write_results(tmp_path / name, made, origin=origin)
        export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "out" / name)
        code = (tmp_path / "out" / name / "README.md").read_text().split("```python\n")[1].split("```")[0]
        compile(code, name, "exec")
        assert 'folder = "."\n' in code and "for layer in range(3)}" in code
        assert ('language_model = "org/model"' in code) == (name == "hub")
        assert ("# a folder with the language model" in code) == (name == "local")


def test_a_topk_set_says_which_circuit_tracer_reads_it(tmp_path: Path, capsys) -> None:
    results = write_results(tmp_path / "study", {0: random_dictionary(0, act="topk")})
    export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 3)
    words = "circuit-tracer 0.5.0 and older ignore `activation: topk`"
    assert words in capsys.readouterr().err
    assert words in (tmp_path / "out" / "README.md").read_text()


def run_command(monkeypatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["circuitloom", *map(str, arguments)])
    main()


def test_the_command_takes_a_study_or_the_folder_of_its_results(results: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(results.parent)
    run_command(monkeypatch, "export", "saelens", results, "a", "--layers", "0", "2")
    assert "a: some for saelens, 2 layers, " in capsys.readouterr().out
    results.parent.joinpath("results").mkdir()
    results.rename(results.parent / "results" / "study")
    run_command(monkeypatch, "export", "saelens", "study", "b", "--license", "mit")
    assert "3 written, 0 complete before" in capsys.readouterr().out
    assert front_matter(results.parent / "b" / "README.md")["license"] == "mit"


def test_the_command_refuses_options_without_an_effect(results: Path, monkeypatch) -> None:
    for name, option, known in (
        ("saelens", "--labels", "--run, --layers, --model, --license"),
        ("viewer-features", "--labels", "--run, --layers"),
        (
            "neuronpedia-graph",
            "--license",
            "--trace, --model, --supernodes, --labels, --source-set, --features-url",
        ),
    ):
        with pytest.raises(
            SystemExit, match=rf"{name} takes no {option}; remove it, or choose from {known}$"
        ):
            run_command(monkeypatch, "export", name, results, results / "out", option, "x")


def test_the_command_asks_for_a_run_if_there_are_several(results: Path, monkeypatch) -> None:
    write_results(results, {0: random_dictionary(0)}, run="another")
    with pytest.raises(SystemExit, match="has 2 runs; choose one with --run: another, some"):
        run_command(monkeypatch, "export", "saelens", results, results / "out")
    with pytest.raises(
        SystemExit, match="circuitloom: export: there is no study nothing: no folder results/nothing"
    ):
        run_command(monkeypatch, "export", "saelens", "nothing", results / "out")


def test_sparsify_s_folders_are_named_after_modules(tmp_path: Path) -> None:
    results = write_results(tmp_path / "study", {2: random_dictionary(2, act="topk")})
    export_run("sparsify", StoredRun(results, "some"), tmp_path / "out")
    assert (tmp_path / "out" / "layers.2.mlp" / "sae.safetensors").is_file()


def test_a_cross_layer_transcoder_is_written_layer_by_layer(tmp_path: Path) -> None:
    made = random_transcoder(LLAMA.layers, "threshold", reach=1)
    run = StoredRun(write_results(tmp_path / "study", made.layers, config={"kind": "clt"}), "some")
    result = export_run("circuit-tracer", run, tmp_path / "out")
    assert result.written == [0, 1, 2]
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_kind"] == "cross_layer_transcoder"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "mlp.hook_out")
    decoders = load_file(tmp_path / "out" / "W_dec_0.safetensors")["W_dec_0"]
    # circuit-tracer expects decoders to all later layers
    assert decoders.shape == (WIDTH, 3, D) and not decoders[:, 2].any()
    assert set(load_file(tmp_path / "out" / "W_enc_1.safetensors")) == {
        "W_enc_1",
        "b_enc_1",
        "b_dec_1",
        "threshold_1",
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A cross-layer transcoder of 3 layers (`mlp_in` to `mlp_out`), 20 features per layer" in card
    assert "from circuit_tracer.transcoder.cross_layer_transcoder import load_clt" in card
    assert export_run("circuit-tracer", run, tmp_path / "out").kept == [0, 1, 2]


@pytest.mark.parametrize(
    ("format_name", "keys", "layers", "words"),
    [
        ("circuit-tracer", {"act": "topk"}, None, "layer 0 is topk; .* train with batchtopk"),
        ("circuit-tracer", {"skip": True}, None, "layer 0 has W_skip; .* train without skip"),
        ("circuit-tracer", {}, [0, 1], "of all 3 layers; layer 2 is missing"),
        (
            "saelens",
            {},
            None,
            "saelens has no cross-layer transcoders, and this run is one; choose from circuit-tracer",
        ),
        ("sparsify", {"act": "topk"}, None, "sparsify has no cross-layer transcoders"),
    ],
)
def test_cross_layer_transcoders_that_a_format_cannot_hold_are_refused_before_anything_is_written(
    format_name: str, keys: dict, layers: list[int] | None, words: str, tmp_path: Path
) -> None:
    results = write_results(tmp_path / "study", random_transcoder(LLAMA.layers, **keys).layers)
    with pytest.raises(ValueError, match=words):
        export_run(format_name, StoredRun(results, "some", layers), tmp_path / "out")
    assert not (tmp_path / "out").exists()
