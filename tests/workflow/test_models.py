"""Models that do not run are refused before anything is made; `make test-models` runs all stages on each that does."""

import json
import re

import pytest
from tests.architectures import NAMES, tiny_architecture
from tests.workflow.project import Project

from circuitloom.core.tables import read_table

WORDS = [" ".join(f"w{(i * 7 + j * j) % 60 + 4}" for j in range(40)) for i in range(120)]


def study(project: Project, keys: dict) -> str:
    """A study of text from a file and the model in the project's folder `model`."""
    (project.folder / "text.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for words in WORDS))
    sections = {
        "corpus": {"source": "files", "train": "text.jsonl", "context": 16, "validation_share": 0.2},
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
    assert not (fresh.folder / "results").exists()


@pytest.mark.models
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_workflow_runs_on_each_architecture(name: str, fresh: Project) -> None:
    tiny_architecture(name, fresh.folder / "model")
    run = fresh.snakemake(study=study(fresh, {}))
    assert run.returncode == 0, run.stdout[-4000:]
    report = (fresh.results / "report.html").read_text()
    assert str(fresh.folder / "model") in report
    (trace,) = read_table(fresh.results / "circuits" / "words" / "trace.parquet").to_pylist()
    assert trace["identity_error"] <= 1e-4 and trace["frozen_error"] <= 1e-4
