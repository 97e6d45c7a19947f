"""Files outside the results are inputs of the rules that read them, so that a new version causes a rerun."""

import re

from tests.models import tiny_gpt2
from tests.workflow.project import Project


def test_files_of_text_tokenizer_and_model_are_inputs(fresh: Project) -> None:
    model, dataset = tiny_gpt2(fresh.folder / "model"), fresh.folder / "dataset" / "data"
    dataset.mkdir(parents=True)
    (model / "template.jinja").touch()
    (dataset / "train-0.parquet").touch()
    study = fresh.config(
        "real",
        replace=("corpus", "language_model"),
        corpus={"source": "hub", "dataset": str(dataset.parent), "context": 32},
        language_model={"source": "path", "path": str(model)},
    )
    run = fresh.snakemake("--dry-run", "language_model", "--quiet", "host", study=study)
    assert run.returncode == 0, run.stdout
    build, install = (
        re.search(rf"rule {rule}:\n +input: (.*)", run.stdout) for rule in ("build_corpus", "install_model")
    )
    assert build and install
    texts = {str(model / name) for name in ("tokenizer.json", "template.jinja")}
    assert {str(dataset / "train-0.parquet"), *texts} <= set(build[1].split(", "))
    assert {str(model / "model.safetensors"), *texts} <= set(install[1].split(", "))
