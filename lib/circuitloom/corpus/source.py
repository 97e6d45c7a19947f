"""Streams documents from a grammar, from text files, or from a data set on the Hugging Face hub.

Rows that are left out or changed are counted: documents carry the counts before them. Other columns than that of the
text are not read, and what follows the last token that the config asks for is not counted."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from ..config import corpus as config
from ..core.errors import first_line
from ..core.notices import Notice
from .files import COMPRESSIONS, FORMATS, DataFile, check_distinct, file_format
from .hub_files import unused_files
from .json_rows import text_of
from .rows import BLANK, ROW_MEANINGS, Render, Row, no_column
from .separator import separated_rows

if TYPE_CHECKING:
    from datasets import DatasetBuilder

VALIDATION, TRAIN = "validation", "train"
HELD_OUT = "held_out"
"""Kind of remark on a document that equals a held-out document but for white space."""
MEANINGS = {
    **ROW_MEANINGS,
    HELD_OUT: "documents that equal a held-out document but for white space, left out",
}
"""Maps each kind of remark to its meaning."""
_LISTED = 20
"""Maximum number of files that a notice lists."""


class Place(NamedTuple):
    """Position in a source."""

    file: int = 0
    """Index of the file."""
    row: int = 0
    """Index of the row in the file. Rows that are left out also count."""


START = Place()
Counts = Mapping[str, tuple[int, str]]
"""Maps each kind of remark to (number of rows, the first such row)."""


class Document(NamedTuple):
    """A document of a source."""

    place: Place
    text: str
    log_probability: float | None = None
    """Log probability that the grammar generates this document, in nats. None for real text."""
    before: Counts = {}
    """What was counted before the document's row."""
    after: Counts = {}
    """What was counted up to and including the document's row."""


@runtime_checkable
class Rows(Protocol):
    """A file, or another stream of rows."""

    @property
    def path(self) -> str:
        """Path or other name, for messages."""
        ...

    @property
    def unit(self) -> str:
        """What messages call a row."""
        ...

    def rows(self, start: int) -> Iterator[str | Row]:
        """Yield the rows from index `start`, each as its text or as a `Row`."""
        ...


@dataclass(frozen=True)
class Source:
    """A source of documents."""

    name: str
    """Name of the source in error messages."""
    identity: dict[str, Any]
    """Values that identify the text, together with the config: the seed (generated text), the commit (hub), or the size
    and modification time of each file."""
    files: Callable[[str], Sequence[Rows]]
    """`files(split)` returns the files of a split, in order. Raises ValueError if there are none."""
    held_out: float | None = None
    """Fraction of the documents that form the validation split. The hash of a document's text decides the split. None
    if the source has a separate validation split."""
    characters: dict[str, float] = field(default_factory=dict)
    """Approximate number of characters of each split. Empty for generated text and hub data sets."""
    skips_other: bool = False
    """Whether rows that are not text are left out. Otherwise, they are an error."""
    notices: tuple[Notice, ...] = ()
    """What the report must say about the source."""

    def read(
        self, split: str, place: Place = START, counts: Counts | None = None, excluded: Container[int] = ()
    ) -> "Reading":
        """Returns the documents of `split` from `place`.

        `counts` are the counts up to `place`. Documents are left out if `excluded` contains the hash of their text.
        """
        return Reading(self, split, place, counts or {}, excluded)

    def belongs(self, split: str, text: str) -> bool:
        """Whether a text of the files of `split` is a document of `split`."""
        if self.held_out is None:
            return True
        return (text_hash(text) < self.held_out * 2**64) == (split == VALIDATION)


@dataclass
class Reading:
    """Documents of one split from a place on. Iterating updates `counts`."""

    source: Source
    split: str
    place: Place
    counts: Counts
    """What was left out so far."""
    excluded: Container[int] = ()

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents. Raises ValueError if a file cannot be read, or if a row is not text."""
        first = self.place.file
        for number, file in enumerate(self.source.files(self.split)[first:], first):
            start = self.place.row if number == first else 0
            for index, row in enumerate(file.rows(start), start):
                yield from self._document(file, Place(number, index), row)

    def _document(self, file: Rows, place: Place, row: str | Row) -> Iterator[Document]:
        """Yield the document of a row, unless the row is left out."""
        before, log_probability = self.counts, None
        if isinstance(row, str):
            text = row
        else:
            text, log_probability = row.text, row.log_probability
            if row.problem and not self.source.skips_other:
                raise ValueError(
                    f"{_where(file, place)}: {row.problem}; correct it, or set corpus.not_text to skip"
                )
            for kind in row.remarks:
                self._count(kind, file, place, row.problem)
            if text is None:
                return
        if not text or text.isspace():
            self._count(BLANK, file, place)
        elif not self.source.belongs(self.split, text):
            return
        elif self.excluded and text_hash(text) in self.excluded:
            self._count(HELD_OUT, file, place)
        else:
            yield Document(place, text, log_probability, before, self.counts)

    def _count(self, kind: str, file: Rows, place: Place, problem: str = "") -> None:
        count, first = self.counts.get(kind, (0, ""))
        first = first or _where(file, place) + (f": {problem}" if problem else "")
        # a new dict, because documents refer to the old one
        self.counts = {**self.counts, kind: (count + 1, first)}


def _where(file: Rows, place: Place) -> str:
    return f"{file.path}, {file.unit} {place.row + 1}"


def text_hash(text: str) -> int:
    """Returns a 64-bit hash of the words of a text. Copies of a text often differ in white space only."""
    return int.from_bytes(blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "little")


def open_source(section: config.Corpus, seed: int, scratch: Path, render: Render | None = None) -> Source:
    """Open the source that a config section describes. The library `datasets` writes lock files to `scratch`.

    `render` turns chat messages into text, if the section names a column of messages. Raises ValueError if a data set
    does not exist, or if a file is missing, empty or of unknown format.
    """
    match section:
        case config.Chronicle() | config.Guilds():
            name = section.source
            return Source(name, {"seed": seed}, lambda split: [_GeneratedRows(name, seed, split)])
        case config.TextFiles():
            return _files(section, render)
        case config.HubDataset():
            return _hub(section, scratch, render)


@dataclass(frozen=True)
class _GeneratedRows:
    path: str
    """Name of the grammar."""
    seed: int
    split: str
    unit: str = "document"

    def rows(self, start: int) -> Iterator[str | Row]:
        from .grammars import GRAMMARS

        for document in GRAMMARS[self.path].documents(self.seed, self.split, start):
            yield Row(document.text, document.log_probability)


def _files(section: config.TextFiles, render: Render | None) -> Source:
    patterns = {TRAIN: section.train, VALIDATION: section.validation or section.train}
    paths = {split: section.files(split) for split in patterns}
    for split in (TRAIN, VALIDATION)[: 1 + bool(section.validation)]:
        if not paths[split]:
            raise ValueError(
                f"corpus.{split}: no file matches {', '.join(patterns[split])}; correct the pattern"
            )
    files = {
        split: [_data_file(f"corpus.{split}", path, section, render) for path in paths[split]]
        for split in paths
    }
    check_distinct({split: paths[split] for split in (TRAIN, VALIDATION)[: 1 + bool(section.validation)]})
    identity = _file_states([Path(path) for path in dict.fromkeys(paths[TRAIN] + paths[VALIDATION])])
    held_out = None if section.validation else section.validation_share
    fraction = {TRAIN: 1 - (held_out or 0), VALIDATION: held_out or 1}
    characters = {split: fraction[split] * sum(file.characters() for file in files[split]) for split in files}
    names = list(identity)
    name = ", ".join(names[:3]) + (f" and {len(names) - 3} other files" if len(names) > 3 else "")
    notices = []
    for split in (TRAIN, VALIDATION)[: 1 + bool(section.validation)] if section.glob else ():
        listed = ", ".join(paths[split][:_LISTED]) + (", ..." if len(paths[split]) > _LISTED else "")
        message = f"files that match corpus.{split}, read in this order: {listed}"
        notices.append(Notice(split, "glob", len(paths[split]), message))
    return Source(
        name, identity, files.__getitem__, held_out, characters, section.not_text == "skip", tuple(notices)
    )


def _data_file(key: str, path: str, section: config.TextFiles, render: Render | None) -> DataFile:
    """Returns a file of the config `key`. Raises ValueError if it is missing, empty or of unknown format."""
    if not Path(path).is_file():
        remedy = "name its files, or set corpus.glob" if Path(path).is_dir() else "correct the path"
        state = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ValueError(f"{key}: {path} {state}; {remedy}")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{key}: {path} is empty; give a file with text")
    kind = file_format(path)
    if kind is None:
        raise ValueError(
            f"{key}: {path} has an unknown format; convert it to one of {', '.join(FORMATS)}, which may be "
            f"compressed ({', '.join(COMPRESSIONS)}) except for .parquet"
        )
    return DataFile(path, kind, section.column, section.document == "file", render, section.separator)


def _hub(section: config.HubDataset, scratch: Path, render: Render | None) -> Source:
    import datasets
    import datasets.config

    # without this setting, `datasets` writes lock files to the user's cache
    datasets.config.HF_DATASETS_CACHE = scratch
    # without this setting, `datasets` also logs the error that a damaged file raises
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    is_folder = Path(section.dataset).is_dir()
    if is_folder and set(str(Path(section.dataset).resolve())) & set("*?["):
        raise ValueError(
            f"corpus.dataset: the path {section.dataset} contains *, ? or [, which the library datasets takes for a "
            "pattern; rename the folder"
        )
    commit = None if is_folder else _current_commit(section.dataset, section.revision)
    splits = {TRAIN: section.train_split, VALIDATION: section.validation_split or section.train_split}
    builder = cache(lambda: _builder(section, commit))
    held_out = None if section.validation_split else section.validation_share
    files = sorted(path for path in Path(section.dataset).rglob("*") if path.is_file())
    return Source(
        section.dataset,
        {"revision": commit, **_file_states(files)},
        lambda split: _split_files(builder(), splits[split], section, render),
        held_out,
        skips_other=section.not_text == "skip",
        notices=unused_files(section.dataset, files, builder().config.data_files or {}) if is_folder else (),
    )


def _builder(section: config.HubDataset, commit: str | None) -> "DatasetBuilder":
    """Returns the object of `datasets` that knows the files of each split."""
    from datasets import load_dataset_builder

    try:
        return load_dataset_builder(section.dataset, section.subset, revision=commit)
    # RuntimeError: the repository has a loading script, which datasets no longer runs
    except (OSError, ValueError, RuntimeError) as error:
        scripted = isinstance(error, RuntimeError)
        remedy = "; set corpus.revision to refs/convert/parquet, the hub's own copy" if scripted else ""
        raise ValueError(
            f"corpus.dataset: {section.dataset} does not load ({first_line(error)}){remedy}"
        ) from error


def _split_files(
    builder: "DatasetBuilder", split: str, section: config.HubDataset, render: Render | None
) -> Sequence[Rows]:
    """Returns the files of a split. Formats that this package does not read are one stream of `datasets`."""
    known = builder.config.data_files or {}
    names = list(known) if split == "all" else [name.strip() for name in split.split("+")]
    if known and not set(names) <= set(known):
        raise ValueError(
            f"corpus.dataset: {section.dataset} does not load (it has no split {split}); name one of "
            f"{', '.join(map(str, known))}"
        )
    paths = [str(path) for name in names if known for path in known[name]]
    formats = {path: file_format(path) for path in paths}
    if not paths or None in formats.values() or not _is_plain(builder):
        return [_Streamed(builder, split, section, render)]
    whole = getattr(builder.config, "sample_by", "line") == "document"
    return [
        DataFile(path, str(formats[path]), section.column, whole, render, section.separator) for path in paths
    ]


def _is_plain(builder: "DatasetBuilder") -> bool:
    """Whether the files hold text, JSON or Parquet, and the data set's card does not change how they are read."""
    keys = builder.config
    changed = (
        getattr(keys, "encoding", "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"),
        getattr(keys, "encoding_errors", None) not in (None, "strict"),
        getattr(keys, "field", None) is not None,
        getattr(keys, "filters", None) is not None,
        getattr(keys, "keep_linebreaks", False),
        getattr(keys, "sample_by", "line") == "paragraph",
    )
    return builder.name in ("text", "json", "parquet") and not any(changed)


@dataclass(frozen=True)
class _Streamed:
    """A split that `datasets` reads."""

    builder: "DatasetBuilder"
    split: str
    section: config.HubDataset
    render: Render | None

    @property
    def unit(self) -> str:
        return "row" if self.section.separator is None else "document"

    @property
    def path(self) -> str:
        return f"{self.section.dataset} ({self.split})"

    def rows(self, start: int) -> Iterator[str | Row]:
        column = self.section.column
        with _streamable(self.path):
            data: Any = self.builder.as_streaming_dataset(self.split)
            columns = data.column_names or list(next(iter(data), {}))
        name = column if column in columns else column.split(".")[0]
        if name not in columns:
            raise no_column(self.path, column, columns, self.render)
        data, separator = data.select_columns([name]), self.section.separator
        with _streamable(self.path):
            if separator is None:
                yield from text_of(column, data.skip(start), self.render)
            else:
                rows = text_of(column, data, self.render)
                yield from islice(separated_rows(rows, separator, "row"), start, None)


@contextmanager
def _streamable(where: str) -> Iterator[None]:
    """Within the context, errors of `datasets` become ValueErrors with a short message."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    # Arrow's errors are ValueErrors; for an empty file, a generator raises RuntimeError
    except (DatasetsError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(f"{where}: cannot be read as text ({reason}); repair or replace it") from error


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
