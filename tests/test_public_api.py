"""Every public name has an example that runs, here on the results of a tiny study made of random parts."""

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from tests.models import CONTEXT, D_MODEL, VOCABULARY, tiny_gpt2

import circuitloom
from circuitloom.catalog.build import build_catalog
from circuitloom.core.layout import Layout
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary
from circuitloom.evaluation.concepts import concept_annotations
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.language_model.model import load_model

RUN, LAYER, WIDTH, BOS = "tc-topk16-1024", 1, 32, 1


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The variables of the examples; `project` is a folder with results/quickstart."""
    project = tmp_path_factory.mktemp("project")
    layout = Layout(project / Layout.of("quickstart").root)
    tiny_gpt2(layout.model)
    layout.tokenizer.parent.mkdir(parents=True)
    layout.tokenizer.symlink_to(layout.model)
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(4, VOCABULARY, (4, CONTEXT), generator=generator)
    token[:, 0] = BOS
    blocks = [(token.numpy().astype("uint16"), torch.zeros_like(token).numpy().astype("int32"))]
    attributes = {"bos_id": BOS, "separator_id": BOS, "vocabulary": VOCABULARY}
    write_tokens(layout.tokens("validation"), blocks, len(token), attributes)
    arrays = {
        "W_enc": torch.randn(WIDTH, D_MODEL, generator=generator),
        "b_enc": torch.zeros(WIDTH),
        "W_dec": torch.randn(WIDTH, D_MODEL, generator=generator),
        "b_dec": torch.zeros(D_MODEL),
    }
    dictionary = Dictionary(**arrays, act="topk", k=4, layer=LAYER)
    save_dictionary(dictionary, layout.dictionary(RUN, LAYER), {})
    build_catalog(layout.root)
    held_out = HeldOut(token, torch.arange(4)[:, None].expand_as(token), token != BOS, token == BOS)
    sequence, position = (held_out.scored & (token < 20)).nonzero(as_tuple=True)
    concepts = {
        "concept": ["rare"] * len(sequence),
        "sequence": sequence.numpy(),
        "position": position.numpy(),
    }
    model = load_model(layout.model, device="cpu")
    variables = {
        "project": project,
        "model": model,
        "tokens": token,
        "held_out": held_out,
        "dictionary": dictionary,
        "x": torch.randn(held_out.n_tokens, D_MODEL, generator=generator),
        "y": torch.randn(held_out.n_tokens, D_MODEL, generator=generator),
        "annotations": concept_annotations(pa.table(concepts), held_out),
        "tracer": circuitloom.open_tracer(layout.root),
    }
    return variables | arrays


@pytest.mark.parametrize("name", circuitloom.__all__)
def test_the_example_of_a_public_name_runs(name: str, names: dict[str, Any], monkeypatch) -> None:
    monkeypatch.chdir(names["project"])
    public = {each: getattr(circuitloom, each) for each in circuitloom.__all__}
    examples = doctest.DocTestParser().get_examples(public[name].__doc__)
    assert examples
    variables = names | public
    for example in examples:
        exec(example.source, variables)


def test_the_package_lists_its_public_names() -> None:
    assert {*circuitloom.__all__, "__version__"} <= set(dir(circuitloom))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        circuitloom.nothing  # noqa: B018


def test_the_version_is_that_of_the_project() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{circuitloom.__version__}"' in project
    command = [sys.executable, "-m", "circuitloom", "--version"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == f"circuitloom {circuitloom.__version__}\n"
