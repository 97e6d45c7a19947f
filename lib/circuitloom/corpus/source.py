"""Streams documents from chronicle, text files, or a data set on the Hugging Face hub, with the library `datasets`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import corpus as config
from ..core.errors import first_line
from .separator import separated_documents

if TYPE_CHECKING:
    from datasets import IterableDataset

VALIDATION, TRAIN = "validation", "train"
_BATCH = 1000
_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class Document(NamedTuple):
    """A document of a source."""

    stream_index: int
    """Index of the document in the source's stream. Skipped documents also count."""
    text: str
    log_probability: float | None
    """Log probability that the grammar generates this document, in nats. None for real text."""


@dataclass(frozen=True)
class Source:
    """A source of documents."""

    name: str
    """Name of the source in error messages."""
    identity: dict[str, Any]
    """Values that identify the text, together with the config: the seed (chronicle), the commit (hub), or the size and
    modification time of each file."""
    stream: Callable[[str, int], "IterableDataset"]
    """`stream(split, start)` returns the rows of `split` from index `start`. The columns are `text` and, for chronicle,
    `log_probability`."""
    held_out: float | None = None
    """Fraction of the documents that form the validation split. The hash of a document's text decides the split. None
    if the source has a separate validation split."""
    characters: dict[str, float] = field(default_factory=dict)
    """Approximate number of characters of each split. Empty for chronicle and hub data sets."""

    def documents(self, split: str, start: int = 0) -> Iterator[Document]:
        """Yield the documents of `split` from index `start` of the stream. Blank documents are skipped.

        Raises ValueError if the rows cannot be read, or if the text column does not exist.
        """
        stream_index = start
        for batch in self._batches(split, start):
            scores = batch.get("log_probability", [None] * len(batch["text"]))
            for text, log_p in zip(batch["text"], scores, strict=True):
                if text and not text.isspace() and self._belongs(split, text):
                    yield Document(stream_index, text, log_p)
                stream_index += 1

    def _batches(self, split: str, start: int) -> Iterator[dict[str, list[Any]]]:
        rows = self.stream(split, start)
        with _readable(self.name):
            yield from rows.iter(batch_size=_BATCH)

    def _belongs(self, split: str, text: str) -> bool:
        if self.held_out is None:
            return True
        return (text_hash(text) < self.held_out * 2**64) == (split == VALIDATION)


def open_source(section: config.Corpus, seed: int, scratch: Path) -> Source:
    """Open the source that a config section describes. The library `datasets` writes lock files to `scratch`.

    Raises ValueError if a data set does not exist, or if a file is missing, empty or of unknown format.
    """
    import datasets
    import datasets.config

    # without this setting, `datasets` writes lock files to the user's cache
    datasets.config.HF_DATASETS_CACHE = scratch
    # without this setting, `datasets` also logs the error that a damaged file raises
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    match section:
        case config.Chronicle():
            return _chronicle(seed)
        case config.TextFiles():
            return _files(section)
        case config.HubDataset():
            return _hub(section)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Within the context, errors of `datasets` become ValueErrors with a short message."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    # Arrow's errors are ValueErrors; for an empty file, a generator raises RuntimeError
    except (DatasetsError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(f"{where}: cannot be read as text ({reason}); repair or replace it") from error


def text_hash(text: str) -> int:
    """Returns a 64-bit hash of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _chronicle(seed: int) -> Source:
    from datasets import IterableDataset

    def stream(split: str, start: int) -> IterableDataset:
        keys = {"seed": seed, "split": split, "start": start}
        return IterableDataset.from_generator(_chronicle_rows, gen_kwargs=keys)

    return Source("chronicle", {"seed": seed}, stream)


def _chronicle_rows(seed: int, split: str, start: int) -> Iterator[dict[str, Any]]:
    from .chronicle.grammar import episodes

    for episode in episodes(seed, split, start):
        yield {"text": episode.text, "log_probability": episode.log_probability}


def _files(section: config.TextFiles) -> Source:
    from datasets import load_dataset

    paths = {TRAIN: section.train, VALIDATION: section.validation or section.train}
    formats = {split: _format(f"corpus.{split}", files) for split, files in paths.items()}

    def stream(split: str, start: int) -> "IterableDataset":
        if formats[split] == "text" and section.separator:
            separated = _separated_files(paths[split], section.separator)
            return _text_only(separated, section.text, paths[split][0]).skip(start)
        text_options: dict[str, Any] = {"sample_by": "document" if section.document == "file" else "line"}
        data = load_dataset(
            formats[split],
            data_files=[str(Path(path).absolute()) for path in paths[split]],
            split="train",
            streaming=True,
            **(text_options if formats[split] == "text" else {}),
        )
        return _separated(_text_only(data, section.text, paths[split][0]), section.separator).skip(start)

    identity = _file_states([Path(path) for path in dict.fromkeys(paths[TRAIN] + paths[VALIDATION])])
    held_out = None if section.validation else section.validation_share
    fraction = {TRAIN: 1 - (held_out or 0), VALIDATION: held_out or 1}
    characters = {split: fraction[split] * sum(map(_characters, files)) for split, files in paths.items()}
    return Source(", ".join(identity), identity, stream, held_out, characters)


def _separated_files(paths: Sequence[str], separator: str) -> "IterableDataset":
    """Returns the documents of text files that `separator` splits, as rows."""
    from datasets import IterableDataset

    def rows() -> Iterator[dict[str, str]]:
        for text in separated_documents(paths, separator):
            yield {"text": text}

    return IterableDataset.from_generator(rows)


def _separated(data: "IterableDataset", separator: str | None) -> "IterableDataset":
    """Returns `data` with a row for each document, if `separator` splits rows into documents."""
    if separator is None:
        return data

    def split(batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
        return {"text": [piece for text in batch["text"] if text for piece in text.split(separator)]}

    return data.map(split, batched=True)


def _format(key: str, paths: Sequence[str]) -> str:
    """Returns the format of the files: text, json or parquet.

    Raises ValueError if a file is missing, empty or of unknown format, or if the formats differ.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"{key}: {path} does not exist; correct the path")
        if path.stat().st_size == 0:
            raise ValueError(f"{key}: {path} is empty; give a file with text")
        if path.suffix not in _FORMATS:
            raise ValueError(
                f"{key}: {path} has an unknown format; convert it to one of {', '.join(_FORMATS)}"
            )
    formats = {_FORMATS[Path(path).suffix] for path in paths}
    if len(formats) > 1:
        raise ValueError(f"{key}: files of several formats; convert them to one format")
    return formats.pop()


def _characters(path: str) -> int:
    """Estimates the number of characters of a file by its uncompressed size in bytes."""
    import pyarrow.parquet as pq

    if Path(path).suffix != ".parquet":
        return Path(path).stat().st_size
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged, or not a Parquet file ({first_line(error)}); replace it"
        ) from error
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _hub(section: config.HubDataset) -> Source:
    from datasets import load_dataset

    commit = None if Path(section.dataset).is_dir() else _current_commit(section.dataset, section.revision)
    splits = {TRAIN: section.train_split, VALIDATION: section.validation_split or section.train_split}

    def stream(split: str, start: int) -> "IterableDataset":
        try:
            data = load_dataset(
                section.dataset, section.subset, split=splits[split], revision=commit, streaming=True
            )
        # RuntimeError: the repository has a loading script, which datasets no longer runs
        except (OSError, ValueError, RuntimeError) as error:
            scripted = isinstance(error, RuntimeError)
            remedy = "; set corpus.revision to refs/convert/parquet, the hub's own copy" if scripted else ""
            raise ValueError(
                f"corpus.dataset: {section.dataset} does not load ({first_line(error)}){remedy}"
            ) from error
        texts = _text_only(data, section.text, f"{section.dataset} ({splits[split]})")
        return _separated(texts, section.separator).skip(start)

    held_out = None if section.validation_split else section.validation_share
    files = sorted(path for path in Path(section.dataset).rglob("*") if path.is_file())
    return Source(section.dataset, {"revision": commit, **_file_states(files)}, stream, held_out)


def _file_states(paths: list[Path]) -> dict[str, Any]:
    """Returns {path: [size in bytes, modification time in ns]}."""
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def _current_commit(dataset: str, revision: str) -> str | None:
    """Returns the commit hash of `revision` of a hub data set."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except (OfflineModeIsEnabled, HFValidationError, httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"corpus.dataset: {dataset} (revision {revision}) is not a folder and was not found on the hub; "
            "check the name and the network (HF_HUB_OFFLINE=0), and HF_TOKEN if it is private"
        ) from error


def _text_only(data: "IterableDataset", column: str, where: str) -> "IterableDataset":
    """Returns `data` with only the column `column`, renamed to `text`.

    Raises ValueError if `column` does not exist. `where` is the name of the data in error messages.
    """
    with _readable(where):
        columns = data.column_names or list(next(iter(data), {}))
    if not columns:
        raise ValueError(f"{where}: has no columns; name a file or data set with a column of text")
    if column not in columns:
        raise ValueError(
            f"corpus.text: {where} has no column {column}; set it to one of {', '.join(columns)}"
        )
    data = data.select_columns([column])
    return data if column == "text" else data.rename_column(column, "text")
