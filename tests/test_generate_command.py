"""`circuitloom generate` on the results of a tiny study made of random parts."""

import json
import sys
from pathlib import Path

import pytest
from tests.attribution.inputs import make_cross_layer, make_dictionaries
from tests.models import tiny_gpt2

from circuitloom.ablation.generation import Sampling, open_generator
from circuitloom.cli import main
from circuitloom.config.circuits import parse_changes
from circuitloom.core.layout import Layout
from circuitloom.dictionaries.cross_layer import save_cross_layer_transcoder
from circuitloom.dictionaries.dictionary import save_dictionary

PROMPT = "w9 w20 w31 w9"
CHANGES = "add 0/3=4; ablate sae:1/5; scale clt:0/3@2=2; set 1/7=3"
OPTIONS = ["--add", "0/3=4", "--ablate", "sae:1/5", "--scale", "clt:0/3@2=2", "--set", "1/7=3"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with results/quickstart: transcoders, SAEs of the residual stream and a cross-layer transcoder."""
    folder = tmp_path_factory.mktemp("project")
    layout = Layout(folder / Layout.of("quickstart").root)
    tiny_gpt2(layout.model)
    layout.tokenizer.parent.mkdir(parents=True)
    layout.tokenizer.symlink_to(layout.model)
    saes = make_dictionaries(None, site_in="resid_pre", site_out="resid_pre")
    for run, dictionaries in {"tc": make_dictionaries(None), "sae": saes}.items():
        for layer, dictionary in dictionaries.items():
            save_dictionary(dictionary, layout.dictionary(run, layer), {})
    transcoder = make_cross_layer()
    folders = {layer: layout.dictionary("clt", layer) for layer in transcoder.layers}
    save_cross_layer_transcoder(transcoder, folders, {})
    return folder


@pytest.fixture
def generate(project, monkeypatch, capsys):
    """Runs the command. Returns what it prints on stdout."""
    monkeypatch.chdir(project)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["circuitloom", "generate", *arguments])
        main()
        return capsys.readouterr().out

    return run


def test_json_has_what_the_library_generates(generate, project) -> None:
    options = ["--run", "tc", "--tokens", "7", "--temperature", "0.8", "--top-k", "20", "--seed", "3"]
    found = json.loads(generate(PROMPT, *OPTIONS, *options, "--positions=-1,5", "--json"))
    generator = open_generator(project / "results" / "quickstart", "tc")
    sampling = Sampling(7, 0.8, 20, 3)
    expected = generator.generate(PROMPT, parse_changes(CHANGES), sampling, "-1,5")
    assert found["prompt"] == ["<bos>", *PROMPT.split()]
    assert [token["id"] for token in found["steered"]["tokens"]] == expected.steered.token
    assert [token["kl"] for token in found["steered"]["tokens"]] == expected.kl.tolist()
    assert [token["id"] for token in found["untouched"]["tokens"]] == expected.untouched.token
    assert found["steered"]["text"] == expected.steered.text and expected.kl.max() > 0.01
    runs = [(edit["run"], edit["kind"], edit["features"], edit["strength"]) for edit in found["edits"]]
    assert runs == [
        ("tc", "add", ["0/3"], 4.0),
        ("sae", "ablate", ["1/5"], None),
        ("clt", "scale", ["0/3@2"], 2.0),
        ("tc", "clamp", ["1/7"], 3.0),
    ]


def test_the_terminal_shows_both_texts_and_the_kl_of_each_token(generate, project) -> None:
    printed = generate(
        PROMPT,
        "--set",
        "0/3=4",
        "--run",
        "tc",
        "--tokens",
        "5",
        "--study",
        str(project / "results/quickstart"),
    )
    generator = open_generator(project / "results" / "quickstart", "tc")
    expected = generator.generate(PROMPT, parse_changes("set 0/3=4"), Sampling(5))
    untouched, steered, _, summary, tokens, _ = printed.splitlines()
    assert untouched == f"untouched  {PROMPT}{expected.untouched.text}"
    assert steered == f"steered    {PROMPT}{expected.steered.text}"
    assert f"mean {expected.kl.mean():.3g} nats, largest {expected.kl.max():.3g} at" in summary
    for name, kl in zip(expected.names(expected.steered.token), expected.kl.tolist(), strict=True):
        assert f"{name!r} {kl:.3g}  " in tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT], "no feature is edited; give --set, --ablate, --scale or --add"),
        ([PROMPT, "--set", "0/3"], "set '0/3' cannot be read; write set LAYER/NUMBER=VALUE"),
        (
            [PROMPT, "--set", "x:0/3=1", "--tokens", "5"],
            "has no dictionaries of a run x; choose from clt, sae, tc",
        ),
        (
            [PROMPT, "--set", "0/3=1", "--run", "x", "--tokens", "5"],
            "has no dictionaries of a run x; choose from clt, sae, tc",
        ),
        ([PROMPT, "--set", "5/3=1", "--tokens", "5"], "layer 5 has no dictionary; choose from 0, 1, 2"),
        ([PROMPT, "--set", "0/3=1", "--tokens", "90"], "context is 32; ask for at most 27"),
        ([PROMPT, "--set", "0/3=1", "--study", "nowhere"], "there is no study nowhere"),
    ],
)
def test_a_mistake_is_one_line(generate, arguments, message) -> None:
    with pytest.raises(SystemExit) as error:
        generate(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
