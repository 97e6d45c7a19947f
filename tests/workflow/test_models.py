"""Models that do not run are refused before anything is made; `make test-models` runs all stages on each that does."""

import json
import re
from pathlib import Path

import pytest
from tests.architectures import NAMES, tiny_architecture
from tests.workflow.project import Project

from circuitloom.core.tables import read_table

WORDS = [" ".join(f"w{(i * 7 + j * j) % 60 + 4}" for j in range(40)) for i in range(120)]

CORPUS = {"source": "files", "train": "text.jsonl", "context": 16, "validation_share": 0.2}


def study(project: Project, keys: dict) -> str:
    """A study of text from a file and the model in the project's folder `model`."""
    (project.folder / "text.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for words in WORDS))
    sections = {
        "corpus": CORPUS,
        "language_model": {"source": "path", "path": "model"},
        "activations": {"sites": ["mlp_in"], "layers": [1], "shard_rows": 4096},
        "training": {"width": 48, "k": 4, "batch": 512, "tokens": 20_000, "learning_rate": 1e-2},
        "dictionaries": {"topk": {}},
        "circuits": {"prompts": {"words": {"text": "w9 w20 w31 w9 w44", "target": "logits"}}},
    }
    return project.config("tiny", replace=tuple(sections | keys), **sections | keys)


REFUSED = {
    "an MLP with its own residual connection": ({"model_type": "bloom"}, {}, "bloom models do not run: its MLP adds"),
    "experts": ({"model_type": "mixtral"}, {}, "mixtral models do not run: its MLPs route each token"),
    "a parallel block without resid_mid": (
        {"model_type": "gptj"}, {"activations": {"sites": ["mlp_in", "resid_mid"]}},
        r"activations\.sites: this model runs attention and MLP in parallel",
    ),
    "downloaded code": ({"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}, {}, "downloaded code is never run"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_model_that_does_not_run_is_refused_by_a_dry_run(fault: str, fresh: Project) -> None:
    config, keys, message = REFUSED[fault]
    (fresh.folder / "model").mkdir()
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": 64}
    (fresh.folder / "model" / "config.json").write_text(json.dumps(sizes | config))
    run = fresh.snakemake("--dry-run", study=study(fresh, keys))
    assert run.returncode != 0
    assert re.search(rf"circuitloom: config: .*{message}", run.stdout), run.stdout
    assert fresh.made == []


BOTH = {
    "activations": {"sites": ["mlp_in"], "layers": [0, 1], "shard_rows": 4096},
    "dictionaries": {
        "topk": {"site": ["mlp_out", "mlp_added"]},
        "saes": {"kind": "sae", "site": "mlp_added"},
    },
    "circuits": {
        "prompts": {
            site: {"text": "w9 w20 w31 w9 w44", "target": "logits", "run": run}
            for site, run in (("mlp_out", "tc-topk4-48"), ("mlp_added", "tc-topk4-48-mlp_added"))
        }
    },
}
"""Keys of a study with dictionaries of what the MLP returns and of what it adds."""


def test_runs_at_all_layers_are_compared_with_ablations_of_their_own_site(fresh: Project) -> None:
    tiny_architecture("gemma3_text", fresh.folder / "model")
    config = study(fresh, BOTH | {"resources": {"group_jobs": False}})
    run = fresh.snakemake("--dry-run", "evaluation", "--quiet", "progress", study=config)
    assert run.returncode == 0, run.stdout[-4000:]
    baselines = {}
    for job in re.split(r"\n(?=rule )", run.stdout):
        if job.startswith("rule evaluate_together"):
            (inputs, output) = (re.search(rf"    {key}: (.*)", job)[1] for key in ("input", "output"))
            baselines[Path(output).parts[-3]] = set(re.findall(r"baseline/(\w+)", inputs))
    assert baselines == {
        "tc-topk4-48": {"mlp_out"}, "tc-topk4-48-mlp_added": {"mlp_added"}, "sae-topk4-48-mlp_added": {"mlp_added"},
    }  # fmt: skip


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "grouped"), [("gemma3_text", False), ("gemma3_text", True), ("granite", True)]
)
def test_the_whole_workflow_runs_on_what_an_mlp_adds(name: str, grouped: bool, fresh: Project) -> None:
    tiny_architecture(name, fresh.folder / "model")
    run = fresh.snakemake(study=study(fresh, BOTH | {"resources": {"group_jobs": grouped}}))
    assert run.returncode == 0, run.stdout[-4000:]
    for trace in BOTH["circuits"]["prompts"]:
        (row,) = read_table(fresh.results / "circuits" / trace / "trace.parquet").to_pylist()
        assert row["identity_error"] <= 1e-4 and row["frozen_error"] <= 1e-4
    norms = read_table(fresh.results / "activations" / "activation_norm.parquet").to_pylist()
    assert {row["site"] for row in norms} == {"mlp_in", "mlp_out", "mlp_added"}
    rows = {
        row["run"]: row for row in read_table(fresh.results / "evaluation" / "pareto.parquet").to_pylist()
    }
    assert {row["site_out"] for row in rows.values()} == {"mlp_out", "mlp_added"}
    assert len(rows) == 3


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_workflow_runs_on_each_architecture(name: str, fresh: Project) -> None:
    model = tiny_architecture(name, fresh.folder / "model")
    keys = {}
    if name == "qwen2":
        # transformers takes any tokenizer in the folder of a Qwen2 model for Qwen2's own, which splits words into bytes
        (fresh.folder / "tokenizer").mkdir()
        for file in model.glob("tokenizer*"):
            file.rename(fresh.folder / "tokenizer" / file.name)
        keys = {"corpus": CORPUS | {"tokenizer": "tokenizer"}}
    run = fresh.snakemake(study=study(fresh, keys))
    assert run.returncode == 0, run.stdout[-4000:]
    report = (fresh.results / "report.html").read_text()
    assert str(fresh.folder / "model") in report
    (trace,) = read_table(fresh.results / "circuits" / "words" / "trace.parquet").to_pylist()
    assert trace["identity_error"] <= 1e-4 and trace["frozen_error"] <= 1e-4
