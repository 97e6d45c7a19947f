"""`circuitloom import` says what published files are, and its config imports them."""

import sys

import pytest
import yaml
from tests import published_folders as folders
from tests.config.test_published import study_of

from circuitloom import cli
from circuitloom.config import load_study


def output_of(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["circuitloom", "import", *arguments])
    cli.main()
    return capsys.readouterr().out


def test_the_command_describes_a_set_and_prints_the_config_that_imports_it(
    tmp_path, monkeypatch, capsys
) -> None:
    folders.circuit_tracer(tmp_path / "set", act="topk", skip=True)
    description, config = output_of(monkeypatch, capsys, str(tmp_path / "set")).split("\n\n")
    size = sum(file.stat().st_size for file in (tmp_path / "set").glob("layer_*"))
    size += 3 * (tmp_path / "set" / "config.yaml").stat().st_size
    assert description.splitlines() == [
        str(tmp_path / "set"),
        "format        circuit_tracer, architecture transcoder",
        "kind          transcoder with skip connection",
        "reads         mlp_in (mlp.hook_in)",
        "reconstructs  mlp_added (hook_mlp_out)",
        "features      24 per layer, d=16",
        "activation    topk, k=5",
        "model         tiny",
        "layers        0, 1, 2",
        f"size          {size / 1e6:,.1f} MB",
    ]
    sweep = yaml.safe_load(config)["dictionaries"]["published"]
    study = study_of(tmp_path, sweep)
    assert study.runs["published"].width == folders.WIDTH and yaml.safe_load(config)["activations"] == {
        "layers": [0, 1, 2]
    }


def test_the_command_writes_a_study_of_the_dictionaries_a_model_and_a_text(
    tmp_path, monkeypatch, capsys
) -> None:
    folders.circuit_tracer(tmp_path / "a set", act="topk", skip=True)
    study_of(tmp_path, {"files": str(tmp_path / "a set")})
    text, file = tmp_path / "text: a.jsonl", tmp_path / "new" / "mine.yaml"
    text.write_text('{"text": "a story"}\n')
    monkeypatch.chdir(tmp_path)
    given = ["a set", "--model", "model", "--text", text.name]
    with pytest.raises(SystemExit, match="a study needs --study FILE, --model and --text; add --study"):
        output_of(monkeypatch, capsys, *given)
    printed = output_of(monkeypatch, capsys, *given, "--study", str(file))
    assert printed.endswith(f"\nsnakemake --cores all --configfile {file}\ncircuitloom explore mine\n")
    # paths are those of the study, wherever it is run
    config = yaml.safe_load(file.read_text())
    study = load_study(config)
    assert (study.name, study.layers, config["corpus"]["train"]) == ("mine", [0, 1, 2], [str(text)])
    assert config["language_model"] == {"source": "path", "path": str(tmp_path / "model")}
    run = study.runs["published"]
    assert (run.files, run.k, run.skip) == (str(tmp_path / "a set"), folders.K, True)
    with pytest.raises(SystemExit, match=r"mine\.yaml: exists; name another file"):
        output_of(monkeypatch, capsys, *given, "--study", str(file))
    with pytest.raises(SystemExit, match="d=8, made for tiny; the study's model has d=16"):
        folders.circuit_tracer(tmp_path / "narrow", d=8)
        output_of(monkeypatch, capsys, "narrow", *given[1:], "--study", "other.yaml")
    with pytest.raises(SystemExit, match=r"corpus\.train: .*absent\.jsonl does not exist; correct the path"):
        output_of(monkeypatch, capsys, *given[:-1], "absent.jsonl", "--study", "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_the_config_of_files_that_need_a_choice_makes_that_choice(tmp_path, monkeypatch, capsys) -> None:
    for layer in range(3):
        for width in (16, 32):
            place = tmp_path / "set" / f"layer_{layer}_width_{width}k_l0_small"
            folders.gemma_scope(place, layer, config=folders.scope_2_config(layer, width=width), width=width)
    with pytest.raises(SystemExit, match=r"^circuitloom: import: files: 2 dictionaries of layer 0 "):
        output_of(monkeypatch, capsys, str(tmp_path / "set"))
    out = output_of(monkeypatch, capsys, str(tmp_path / "set"), "--width", "32")
    assert "activation    jumprelu, L0 10 to 10 per token as stated" in out
    assert "thresholds    0 to " in out
    study = study_of(tmp_path, yaml.safe_load(out.split("\n\n")[1])["dictionaries"]["published"])
    assert study.runs["published"].width == 32


def test_an_sae_of_the_stream_after_a_block_says_which_layer_it_is_here(
    tmp_path, monkeypatch, capsys
) -> None:
    folders.saelens(tmp_path / "after", 1, "standard", metadata={"hook_name": "model.layers.1"})
    folders.saelens(tmp_path / "before", 1, "standard", hooks=("", "hook_resid_pre"))
    after, before = (output_of(monkeypatch, capsys, str(tmp_path / name)) for name in ("after", "before"))
    assert (
        "\n              the stream after block 1 is resid_pre of layer 2, which is its layer in a study\n"
        in after
    )
    assert "layers        2\n" in after and "  layers: [2]\n" in after
    assert "the stream after" not in before and "layers        1\n" in before


def test_the_stream_after_the_last_block_is_refused_by_name(tmp_path) -> None:
    folders.saelens(tmp_path / "last", 2, "standard", hooks=("", "hook_resid_post"))
    message = r"no layer 3 \(the stream after the last block, 2, has no name here\); choose from 0 to 2"
    with pytest.raises(ValueError, match=message):
        study_of(tmp_path, {"files": str(tmp_path / "last")}, layers=[3])


def test_a_folder_without_dictionaries_is_refused_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(
        SystemExit, match=r"^circuitloom: import: files: .* has no file; needed is one of"
    ) as error:
        output_of(monkeypatch, capsys, str(tmp_path))
    assert "\n" not in str(error.value)
