"""Shards of several jobs, joined, have the bytes of a single job."""

import os
import shutil
from pathlib import Path

import pytest
from tests.activations.inputs import content, make_cache, make_order

from circuitloom.activations.cache import cache_shards_of_job
from circuitloom.activations.shards import join_shards
from circuitloom.config import Activations


def cache_job(folder: Path, model, order, job: int, jobs: int, site: str = "mlp_in", **keys) -> Path:
    path = folder / "parts" / site / f"{job}of{jobs}"
    cache_shards_of_job(site, order, model, Activations(jobs=jobs, **keys), job, path)
    return path


@pytest.mark.parametrize(
    ("jobs", "keys"),
    [(1, {}), (2, {"dtype": "int8"}), (3, {"layers": [0, 2]}), (9, {}), (2, {"site": "resid_pre"})],
)
def test_joined_shards_equal_those_of_one_job(jobs, keys, model, tmp_path):
    order = make_order(230)
    assert order.shards == 7
    make_cache(tmp_path / "one", model, order, **keys)
    folders = [cache_job(tmp_path / "many", model, order, job, jobs, **keys) for job in range(jobs)]
    before = [content(folder) for folder in folders]
    join_shards(folders, tmp_path / "many")
    site = keys.get("site", "mlp_in")
    assert content(tmp_path / "many" / site) == content(tmp_path / "one" / site)
    assert [content(folder) for folder in folders] == before
    # the joined layers stay if the job folders are removed
    shutil.rmtree(tmp_path / "many" / "parts")
    assert content(tmp_path / "many" / site) == content(tmp_path / "one" / site)


@pytest.mark.parametrize("broken", ["links", "moves"])
def test_without_links_or_after_a_kill_the_bytes_are_the_same(broken, model, tmp_path, monkeypatch):
    order = make_order(120)
    make_cache(tmp_path / "one", model, order)
    folders = [cache_job(tmp_path / "many", model, order, job, 2) for job in range(2)]

    def refuse(*_args) -> None:
        raise OSError(18, "Invalid cross-device link")

    if broken == "links":
        monkeypatch.setattr(os, "link", refuse)
    else:
        from circuitloom.activations import shards as module

        move = module.replace_folder

        def move_the_first(folder, target):
            if folder.name != "layer0.zarr":
                raise KeyboardInterrupt
            move(folder, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "replace_folder", move_the_first)
            join_shards(folders, tmp_path / "many")
    join_shards(folders, tmp_path / "many")
    assert content(tmp_path / "many" / "mlp_in") == content(tmp_path / "one" / "mlp_in")


def test_shards_of_different_models_orders_or_configs_are_not_joined(model, tmp_path):
    order = make_order(120)
    first = cache_job(tmp_path, model, order, 0, 2)
    for changed in ({"layers": [0]}, {"dtype": "bfloat16"}):
        second = cache_job(tmp_path / str(changed), model, order, 1, 2, **changed)
        with pytest.raises(
            ValueError, match=r"1of2: cached with another model, row order or config than .*; delete both"
        ):
            join_shards([first, second], tmp_path)
    other = cache_job(tmp_path / "order", model, make_order(120, seed=3), 1, 2)
    with pytest.raises(ValueError, match="with another model, row order or config"):
        join_shards([first, other], tmp_path)


def test_missing_shards_are_named(model, tmp_path):
    order = make_order(120)
    first, second = (cache_job(tmp_path, model, order, job, 2) for job in range(2))
    with pytest.raises(
        ValueError, match=r"shard[12]\.safetensors: missing from all folders in .*parts/mlp_in; delete that"
    ):
        join_shards([first], tmp_path)
    (second / "layer1.zarr" / "values" / "c" / "2" / "0").unlink()
    with pytest.raises(ValueError, match=r"c/2/0: missing; delete .*1of2 and run again"):
        join_shards([first, second], tmp_path)
    (second / "description.json").write_text("{")
    with pytest.raises(ValueError, match=r"1of2: no cached activations .*; delete it and run again"):
        join_shards([first, second], tmp_path)
