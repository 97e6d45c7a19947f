"""The arithmetic of plans, on a study small enough to count by hand; a disk too small is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from circuitloom.config import load_study
from circuitloom.plan import MachineRates, calibrate, check_disk, check_memory, corpus_tokens, describe, plan
from circuitloom.plan.costs import works_of
from circuitloom.plan.machine import Gpus

STUDY = {
    "name": "x",
    "corpus": {"source": "chronicle", "train_tokens": 1_000_000, "validation_tokens": 10_000, "context": 64},
    "language_model": {"source": "pretrain", "layers": 2, "d_model": 16, "heads": 2, "tokens": 500_000},
    "activations": {"layers": [1], "tokens": 100_000, "dtype": "float16"},
    "training": {"width": 32, "k": 4, "tokens": 200_000},
    "dictionaries": {"a": {"act": ["topk", "relu"]}},
}
MACHINE = MachineRates(operations_per_second=1e12, free_bytes=1e12, device="a test")


def costs(**changes):
    study = load_study({**STUDY, **changes})
    return {cost.stage: cost for cost in plan(study, MACHINE)}


def test_activations_take_rows_times_width_on_disk() -> None:
    cost = costs()["activations"]
    # per row 16 numbers of two bytes, and six bytes for its sequence and position
    assert cost.disk == 100_000 * (16 * 2 + 6)
    assert costs(activations={"layers": [0, 1], "tokens": 100_000})["activations"].disk == 100_000 * (
        2 * 16 * 2 + 6
    )


def test_int8_takes_one_byte_per_number_and_a_scale_per_row() -> None:
    assert costs(activations={"layers": [1], "tokens": 100_000, "dtype": "int8"})[
        "activations"
    ].disk == 100_000 * (16 + 4 + 6)


def test_a_forward_pass_takes_two_operations_per_weight_plus_attention() -> None:
    cost = costs()["activations"]
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 64)
    assert cost.operations == 100_000 * (2 * weights + 2 * 4 * 64 * 16)


def test_a_sparse_step_costs_one_dense_product_and_a_penalised_one_six() -> None:
    cost = costs()["dictionaries"]
    assert cost.operations == 200_000 * (2 * 16 * 32 + 10 * 16 * 4) + 200_000 * 12 * 16 * 32


def test_each_output_of_the_mlp_that_is_not_stored_is_computed_once_per_token() -> None:
    def products(stored: list[str]) -> float:
        sweep = {"a": {"site": ["mlp_out", "mlp_added"]}}
        study = load_study({**STUDY, "activations": {"sites": stored}, "dictionaries": sweep})
        (work,) = (work for work in works_of(study) if work.stage == "dictionaries")
        return work.gpu_load.fp32_flops

    computed = 2 * 200_000 * 2 * load_study(STUDY).shape.mlp_weights
    none = products(["mlp_in", "mlp_out", "mlp_added"])
    assert products(["mlp_in", "mlp_out"]) - none == pytest.approx(computed)
    assert products(["mlp_in"]) - none == pytest.approx(2 * computed)


def test_imported_runs_cost_their_weights_and_no_training(tmp_path) -> None:
    (tmp_path / "1.pt").touch()
    files = {"files": f"{tmp_path}/{{layer}}.pt", "name": "theirs", "act": "relu"}
    imported_only, with_imported = (
        costs(dictionaries={"b": files}),
        costs(dictionaries={**STUDY["dictionaries"], "b": files}),
    )
    assert (imported_only["dictionaries"].tokens, imported_only["dictionaries"].operations) == (0, 0)
    assert imported_only["dictionaries"].disk == 4 * (2 * 32 * 16 + 2 * 32)
    assert with_imported["dictionaries"].operations == costs()["dictionaries"].operations
    assert with_imported["evaluation"].operations > costs()["evaluation"].operations


def test_more_work_takes_longer() -> None:
    model = {**STUDY["language_model"], "loss_tokens": 1}
    short = costs(language_model=model)["language_model"]
    long = costs(language_model={**model, "tokens": 5_000_000})["language_model"]
    assert long.operations == pytest.approx(10 * short.operations, rel=1e-5)
    assert long.seconds > short.seconds


def test_fewer_tokens_of_the_loss_take_less_time() -> None:
    every = costs()["language_model"]
    few = costs(language_model={**STUDY["language_model"], "loss_tokens": 100})["language_model"]
    assert few.operations < every.operations


def test_the_tokens_of_files_are_estimated_from_their_size(tmp_path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a" * 40_000)
    corpus = {
        "source": "files",
        "train": str(file),
        "tokenizer": "gpt2",
        "context": 64,
        "validation_share": 0.25,
    }
    assert corpus_tokens(load_study({**STUDY, "corpus": corpus})) == (7_500, 2_500)
    # compressed text is taken to be three times as large
    file.rename(tmp_path / "text.txt.gz")
    corpus |= {"train": str(tmp_path / "text*"), "glob": True}
    assert corpus_tokens(load_study({**STUDY, "corpus": corpus})) == (22_500, 7_500)


def test_a_disk_too_small_is_refused_naming_the_largest_stage() -> None:
    study = load_study(STUDY)
    small = MachineRates(1e12, 1e5, "a test")
    with pytest.raises(
        ValueError, match=r"plan: the study needs .* are free; make room, or lower what stage \w+ writes"
    ):
        check_disk(plan(study, small), small)
    check_disk(plan(study, MACHINE), MACHINE)


def test_the_table_has_a_line_per_stage_and_a_total() -> None:
    study = load_study(STUDY)
    lines = list(describe(study, plan(study, MACHINE), MACHINE))
    stages = [line.split()[0] for line in lines[2:12]]
    assert stages == [
        "corpus",
        "language_model",
        "activations",
        "dictionaries",
        "evaluation",
        "features",
        "circuits",
        "labels",
        "cases",
        "all",
    ]


def test_a_stage_takes_the_memory_of_all_parallel_jobs() -> None:
    study = load_study({**STUDY, "activations": {"layers": [0, 1]}})
    one_job, four_jobs = (plan(study, replace(MACHINE, jobs=jobs)) for jobs in (1, 4))
    ratios = {one.stage: many.memory / one.memory for one, many in zip(one_job, four_jobs, strict=True)}
    # dictionaries: one sweep on two layers; evaluation: a sweep, ablations and concepts; features: a sweep and neurons
    assert ratios == {
        "corpus": 1, "language_model": 1, "activations": 1, "dictionaries": 2, "evaluation": 3, "features": 2,
        "circuits": 1, "labels": 3, "cases": 1,
    }  # fmt: skip


def test_activation_jobs_of_one_site_run_in_parallel() -> None:
    keys = {"layers": [0, 1], "shard_rows": 4096}
    studies = [load_study({**STUDY, "activations": {**keys, "jobs": jobs}}) for jobs in (1, 3)]
    one, three = (works_of(study)[2] for study in studies)
    # the order of rows and the norms are jobs of their own
    assert (one.jobs, one.starts, three.jobs, three.starts) == (1, 3, 3, 5)
    assert (one.disk, one.operations) == (three.disk, three.operations)
    costs = [plan(study, replace(MACHINE, jobs=2))[2] for study in studies]
    assert costs[1].memory == 2 * costs[0].memory


def test_tables_take_nine_bytes_per_activation_plus_the_examples_of_each_feature() -> None:
    usual = {"examples": 2, "bands": 1, "band_examples": 3, "neurons": 0}
    cost = costs(features=usual)["features"]
    fires, widest = 10_000 * (4 + 64), 10_000 * 64
    assert cost.disk == 9 * (fires + 2 * widest) + 2 * 32 * (300 + 5 * 90)
    # the 8 most active of 64 neurons are kept
    more = costs(features={**usual, "neurons": 8})["features"].disk - cost.disk
    assert more == 9 * 10_000 * 8 + 64 * (300 + 5 * 90)


def test_a_corpus_takes_twice_its_size_while_parts_are_merged() -> None:
    # per token: two bytes, four for its document, two of compressed text; one in the token table
    assert costs()["corpus"].disk == 1_010_000 * (2 * (2 + 4 + 2) + 1)


def test_space_that_the_study_already_takes_counts_as_free(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert calibrate(tmp_path / "none").free_bytes == 1000
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train").write_bytes(b"0" * 500)
    assert calibrate(tmp_path / "x").free_bytes == 1500


GEMMA = {
    "source": "hub", "name": "a/gemma",
    "shape": {
        "layers": 18, "d_model": 640, "d_mlp": 2048, "heads": 4, "key_value_heads": 1, "context": 32_768,
        "vocabulary": 262_144, "gated": True,
    },
}  # fmt: skip


def large_vocabulary(**changes):
    corpus = {
        "source": "hub",
        "dataset": "a/b",
        "train_tokens": 1e6,
        "validation_tokens": 1e5,
        "context": 1024,
    }
    return load_study({**STUDY, "corpus": corpus, "language_model": GEMMA, "activations": {}, **changes})


def test_a_large_vocabulary_takes_blocks_of_logits_and_not_tables() -> None:
    study = large_vocabulary()
    evaluation = next(cost for cost in plan(study, MACHINE) if cost.stage == "evaluation")
    # the logits of a batch of 32 sequences alone would take 34 GB
    assert 1e9 < evaluation.memory < 6e9


def test_jobs_beyond_the_memory_are_refused_naming_stage_and_remedy() -> None:
    study = large_vocabulary(evaluation={"batch": 1024})
    small = replace(MACHINE, memory=40e9)
    costs = plan(study, small)
    with pytest.raises(
        ValueError,
        match=r"plan: stage evaluation needs [\d.]+ GB of memory and the machine has 40 GB; "
        r"lower evaluation.batch, or use fewer runs per sweep$",
    ):
        check_memory(costs, small)
    check_memory(plan(large_vocabulary(), small), small)
    check_memory(costs, MACHINE)
    with pytest.raises(ValueError, match="or give Snakemake fewer --cores"):
        check_memory(plan(study, replace(small, jobs=4)), small)


def test_a_plan_for_gpus_lists_its_limits_instead() -> None:
    gpus = Gpus(1, 1, 80e9, 6e13, 3e12)
    machine = replace(MACHINE, gpus=gpus, memory=1e9)
    check_memory(plan(large_vocabulary(), machine), machine)


def test_exports_are_planned_only_if_the_study_asks() -> None:
    asked = {"dictionaries": {"a": {"act": "relu", "name": "one"}}, "activations": {"layers": [0, 1]}}
    assert "exchange" not in costs(**asked, exchange={"formats": ["saelens"], "runs": []})
    cost = costs(**asked, exchange={"formats": ["saelens", "circuit-tracer"]})["exchange"]
    # two formats and two layers; encoder and decoder of 32 features and d = 16, and two vectors, in float32
    assert cost.disk == 2 * 2 * 4 * (2 * 32 * 16 + 2 * 32)
    assert cost.seconds > 0
