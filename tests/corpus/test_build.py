import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pyarrow.compute as pc
import pytest
from tests.corpus import kill
from tests.corpus.inputs import TEXTS, assert_same_tokens, bpe, built, jsonl, section, texts, write_parquet
from tests.language_model.inputs import make_hub_repository

from circuitloom.core.tables import read_table
from circuitloom.corpus.build import OUTPUTS, TokenizerSource, build_corpus
from circuitloom.corpus.chronicle.grammar import write_episode
from circuitloom.corpus.source import open_source
from circuitloom.corpus.tokens import open_tokens


def contents(folder: Path) -> dict[str, bytes]:
    """Every output file of `build_corpus`, by name."""
    files = [file for name in OUTPUTS for file in [folder / name, *sorted((folder / name).rglob("*"))]]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def notices(folder: Path) -> list[dict]:
    return read_table(folder / "notice.parquet").to_pylist()


def formats(folder: Path) -> dict[str, dict]:
    """Config keys of the same documents in every format."""
    (folder / "text").mkdir()
    lines = folder / "train.txt"
    lines.write_text("\n".join(TEXTS) + "\n")
    for number, text in enumerate(TEXTS):
        (folder / "text" / f"{number:03d}.txt").write_text(text)
    copy = folder / "copy" / "plain_text" / "train"
    copy.mkdir(parents=True)
    write_parquet(copy / "0000.parquet", TEXTS)
    hub = folder / "hub" / "data"
    hub.mkdir(parents=True)
    write_parquet(hub / "train-00000-of-00002.parquet", TEXTS[:50])
    write_parquet(hub / "train-00001-of-00002.parquet", TEXTS[50:])
    (hub.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    )
    return {
        "txt": {"source": "files", "train": str(lines)},
        "documents": {
            "source": "files",
            "train": [str(path) for path in sorted((folder / "text").iterdir())],
            "document": "file",
        },
        "jsonl": {"source": "files", "train": str(jsonl(folder / "train.jsonl", TEXTS))},
        "other column": {
            "source": "files", "train": str(jsonl(folder / "body.jsonl", TEXTS, "body")), "text": "body",
        },
        "parquet": {"source": "files", "train": str(write_parquet(folder / "train.parquet", TEXTS))},
        "hub": {"source": "hub", "dataset": str(hub.parent), "subset": "plain", "train_tokens": 10**6},
        # as the hub's branch refs/convert/parquet is laid out
        "the hub's copy": {"source": "hub", "dataset": str(folder / "copy"), "train_tokens": 10**6},
    }  # fmt: skip


def test_every_format_gives_the_same_tokens(tmp_path, tokenizer):
    assert_same_tokens(formats(tmp_path), tmp_path / "corpus", tokenizer)


def test_documents_are_held_out_by_a_hash_of_their_text_so_the_split_is_stable_and_disjoint(
    tmp_path, tokenizer
):
    shuffled = random.Random(0).sample(TEXTS * 3, 3 * len(TEXTS))
    held_out = []
    for name, documents in (("once", TEXTS), ("thrice", shuffled)):
        path = jsonl(tmp_path / f"{name}.jsonl", documents)
        folder = built(tmp_path / name, tokenizer, source="files", train=str(path), validation_share=0.3)
        held_out.append(set(texts(folder, "validation")))
        assert not held_out[-1] & set(texts(folder, "train"))
    # the last one or two may begin after the last complete sequence
    assert len(held_out[0] ^ held_out[1]) <= 2
    assert 0.15 < len(held_out[0]) / len(TEXTS) < 0.45


def test_documents_of_the_validation_file_are_excluded_from_training(tmp_path, tokenizer):
    train = jsonl(tmp_path / "train.jsonl", TEXTS)
    held_out = jsonl(tmp_path / "held_out.jsonl", TEXTS[20:60:2])
    folder = built(tmp_path / "corpus", tokenizer, source="files", train=str(train), validation=str(held_out))
    assert texts(folder, "validation") == TEXTS[20:60:2][: len(texts(folder, "validation"))]
    rest = [text for text in TEXTS if text not in TEXTS[20:60:2]]
    assert texts(folder, "train") == rest[: len(texts(folder, "train"))]
    assert len(texts(folder, "train")) >= len(rest) - 2


def test_chronicle_s_documents_are_the_grammar_s_and_its_splits_are_disjoint(chronicle):
    for split in ("train", "validation"):
        rows = [
            row for row in read_table(chronicle / "document.parquet").to_pylist() if row["split"] == split
        ]
        for row in rows:
            episode = write_episode(0, split, row["document"])
            assert (row["text"], row["log_probability"]) == (episode.text, episode.log_probability)
            assert row["n_tokens"] == len(episode.words)
    assert not set(texts(chronicle, "train")) & set(texts(chronicle, "validation"))


def test_the_entropy_of_the_grammar_is_about_1_53_nats_per_token(chronicle):
    rows = read_table(chronicle / "document.parquet", pc.field("split") == "validation").to_pylist()
    # a document's end is predicted too
    assert abs(sum(-r["log_probability"] for r in rows) / sum(r["n_tokens"] + 1 for r in rows) - 1.527) < 0.05


def test_a_source_can_be_read_from_any_index(tmp_path):
    for keys in [*formats(tmp_path).values(), {"source": "chronicle"}, {"source": "guilds"}]:
        source = open_source(section(**keys), 0, tmp_path / "scratch")
        everything = list(islice(source.read("train"), 60))
        middle = everything[30]
        assert list(islice(source.read("train", middle.place, middle.before), 30)) == everything[30:60]


def begin(folder: Path, keys: dict) -> subprocess.Popen:
    """Start a build in its own process; returns once it packs."""
    process = subprocess.Popen(
        [sys.executable, kill.__file__, str(folder), json.dumps(keys), ""], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (folder / "build.partial" / "validation").exists():
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_build_killed_at_any_moment_resumes_and_gives_the_same_files(tmp_path):
    keys = {"source": "chronicle", "train_tokens": 400_000, "validation_tokens": 40_000}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process, began = begin(undisturbed, keys), time.monotonic()
    assert process.wait() == 0
    took = time.monotonic() - began
    for share in (0.3, 0.7):
        process = begin(killed, keys)
        time.sleep(took * share * random.random())
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert begin(killed, keys).wait() == 0
    assert contents(killed) == contents(undisturbed)
    assert not (killed / "build.partial").exists()


SMALL = {"source": "chronicle", "train_tokens": 2000, "validation_tokens": 1000}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, bytes]:
    """The files of an undisturbed build of `SMALL`."""
    return contents(built(tmp_path_factory.mktemp("small"), **SMALL))


@pytest.mark.parametrize("moves", range(len(OUTPUTS)))
def test_a_build_killed_while_its_outputs_are_moved_gives_the_same_files(tmp_path, monkeypatch, small, moves):
    remaining, replace = [moves], Path.replace

    def replace_or_die(path, target):
        if target.parent == tmp_path and not remaining[0]:
            raise KeyboardInterrupt
        remaining[0] -= target.parent == tmp_path
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_die)
        with pytest.raises(KeyboardInterrupt):
            built(tmp_path, **SMALL)
    assert contents(built(tmp_path, **SMALL)) == small


def test_a_build_begun_with_another_config_is_not_resumed(tmp_path, monkeypatch, small):
    from circuitloom.corpus import build as module

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            built(tmp_path / "corpus", seed=1, **SMALL)
    assert (tmp_path / "corpus" / "build.partial" / "train").is_dir()
    assert contents(built(tmp_path / "corpus", **SMALL)) == small


def test_nothing_but_the_outputs_is_written(tmp_path, tokenizer):
    home = tmp_path / "home"
    home.mkdir()
    source = jsonl(tmp_path / "train.jsonl", TEXTS)
    keys = json.dumps({"source": "files", "train": str(source), "context": 16})
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, kill.__file__, str(tmp_path / "corpus"), keys, str(tokenizer)]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=home)
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert {path.name for path in (tmp_path / "corpus").iterdir()} <= {*OUTPUTS, "build.lock"}


def test_stories260k_s_tokenizer_and_text_give_its_own_bos_and_ids(tmp_path, real_input):
    from transformers import AutoTokenizer

    data = real_input / "data" / "tinystories"
    keys = {"source": "files", "train": str(data / "validation.jsonl"), "context": 128}
    folder = built(tmp_path, real_input / "models" / "stories260K", vocabulary=512, **keys)
    tokens = open_tokens(folder / "train.zarr")
    row = read_table(folder / "document.parquet").to_pylist()[0]
    ids = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)(row["text"])["input_ids"]
    assert tokens.bos_id == 1 == ids[0]
    assert tokens.take(slice(0, 1))[0, :128].tolist() == [1, *ids[:127]]


def test_a_corpus_is_built_from_a_hub_data_set(tmp_path, tokenizer):
    formats(tmp_path)
    keys = {"source": "hub", "dataset": str(tmp_path / "hub"), "validation_tokens": 64, "train_tokens": 160}
    build_corpus(section(**keys), tmp_path / "corpus", 0, TokenizerSource(str(tokenizer)))
    sizes = {
        split: len(open_tokens(tmp_path / "corpus" / f"{split}.zarr")) for split in ("train", "validation")
    }
    assert sizes == {"train": 10, "validation": 4}


def test_a_text_shorter_than_asked_for_is_a_notice(tmp_path, tokenizer, capsys):
    keys = {"source": "files", "train": str(jsonl(tmp_path / "a.jsonl", TEXTS)), "train_tokens": 10**6}
    folder = built(tmp_path / "corpus", tokenizer, **keys)
    (row,) = [row for row in notices(folder) if row["kind"] == "short"]
    packed = len(open_tokens(folder / "train.zarr")) * 16
    assert (row["subject"], row["count"]) == ("train", 10**6 - packed)
    assert f"circuitloom: corpus: train: {row['message']}" in capsys.readouterr().err.splitlines()


def test_the_arrays_record_their_tokenizer(tmp_path, tokenizer, monkeypatch):
    import zarr
    from huggingface_hub import constants

    folder = built(
        tmp_path / "corpus", tokenizer, source="files", train=str(jsonl(tmp_path / "a.jsonl", TEXTS))
    )
    attributes = zarr.open_group(folder / "train.zarr", mode="r").attrs
    assert attributes["tokenizer"] == {"name": str(tokenizer), "revision": None, "commit": None}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = make_hub_repository(tmp_path / "cache", "org/tokenizer", tokenizer, revision="v1")
    assert TokenizerSource("org/tokenizer", "v1").commit() == commit


def test_a_folder_goes_before_the_hub_unless_a_revision_is_set_and_which_is_printed(
    tmp_path, tokenizer, monkeypatch, capsys
):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = make_hub_repository(tmp_path / "cache", "words", bpe(tmp_path / "hub", "<s>", "</s>"))
    source = {"source": "files", "train": str(jsonl(tmp_path / "a.jsonl", TEXTS))}
    assert TokenizerSource("words").load().eos_id == 1
    shutil.copytree(tokenizer, tmp_path / "words")
    assert TokenizerSource("words").load().eos_id is None
    assert TokenizerSource("words", "main").load().eos_id == 1
    for revision, said in {
        None: f"tokenizer: {tmp_path / 'words'}; for words from the hub set corpus.tokenizer_revision",
        "main": f"tokenizer: words from the hub, commit {commit}",
    }.items():
        build_corpus(
            section(**source), tmp_path / f"corpus {revision}", 0, TokenizerSource("words", revision)
        )
        assert f"circuitloom: corpus: {said}\n" in capsys.readouterr().err


def test_a_tokenizer_with_its_own_code_is_refused_and_the_terminal_is_not_asked(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda _prompt: pytest.fail("asked on the terminal"))
    folder = Path(shutil.copytree(tokenizer, tmp_path / "own"))
    (folder / "tokenizer.json").unlink()
    config = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"corpus.tokenizer: .*own has no tokenizer that loads") as error:
        TokenizerSource(str(folder)).load()
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_neither_cache_nor_hub_has_is_refused(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = (
        r"corpus.tokenizer: org/none \(revision main\) is not in the hub's cache .* set HF_HUB_OFFLINE=0"
    )
    with pytest.raises(ValueError, match=message):
        TokenizerSource("org/none").load()
