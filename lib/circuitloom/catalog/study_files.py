"""Finds and reads the files of a study's results, in a folder or in an S3 bucket."""

import json
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ..core.layout import Layout

S3 = "s3://"
_TOKENS_READ = 100_000
"""Number of tokens that `spacing` reads if there is no tokenizer."""


class StudyFiles:
    """Files under `root`, which is the absolute path of a folder or an address s3://BUCKET/FOLDER.

    The bucket's credentials, region and endpoint come from AWS' environment variables and files. Raises ValueError if
    the folder does not exist or the bucket cannot be read.
    """

    def __init__(self, results: Path | str) -> None:
        text = str(results)
        if "://" in text and not text.startswith(S3):
            raise ValueError(f"{text}: results are read from a folder or from {S3}BUCKET/FOLDER")
        self.in_bucket = text.startswith(S3)
        path = Path(text).absolute()
        # a link stays: it may be the path that all nodes of a cluster have, or avoid characters that an engine refuses
        folder = path.resolve() if ".." in path.parts else path
        self.root = text.rstrip("/") if self.in_bucket else str(folder)
        if not self.in_bucket and not Path(self.root).is_dir():
            raise ValueError(f"there is no folder {text}; name a study's results, such as results/quickstart")
        try:
            self._system, self._base = (
                fs.FileSystem.from_uri(self.root) if self.in_bucket else (fs.LocalFileSystem(), self.root)
            )
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{self.root} cannot be read: {error}") from error
        self._listed: dict[str, list[fs.FileInfo]] = {}

    def matching(self, pattern: str) -> list[str]:
        """Returns the sorted paths, relative to the root, of the files that match `pattern`. A `*` in it stands for any
        text within one name."""
        found = [""]
        *folders, name = pattern.split("/")
        for part in folders:
            found = [f"{above}{folder}/" for above in found for folder in self._names(above, part, True)]
        return sorted(f"{above}{file}" for above in found for file in self._names(above, name, False))

    def read(self, path: str) -> bytes | None:
        """Returns the content of the file at `path`, relative to the root, or None if there is none."""
        if not self.matching(path):
            return None
        with self._system.open_input_stream(f"{self._base}/{path}") as stream:
            return stream.read()

    def _names(self, folder: str, pattern: str, folders: bool) -> list[str]:
        """Returns the names in `folder`, of folders or of files, that match `pattern`."""
        if folder not in self._listed:
            selector = fs.FileSelector(f"{self._base}/{folder}".rstrip("/"), allow_not_found=True)
            try:
                self._listed[folder] = self._system.get_file_info(selector)
            except OSError as error:
                raise ValueError(f"{self.root} cannot be read: {error}") from error
        kind = fs.FileType.Directory if folders else fs.FileType.File
        return [
            info.base_name
            for info in self._listed[folder]
            if info.type == kind and fnmatchcase(info.base_name, pattern)
        ]

    def spacing(self) -> str:
        """Returns the text between two tokens: one space if tokens are separate words, which have no decoder. Otherwise
        it is empty, because tokens contain their own spaces.

        Without a tokenizer, tokens are taken for words if none of them contains a space or a byte.
        """
        layout = Layout(Path())
        if content := self.read(str(PurePosixPath(layout.tokenizer / "tokenizer.json"))):
            return " " if json.loads(content).get("decoder") is None else ""
        path = str(PurePosixPath(layout.corpus_table("token")))
        if not self.matching(path):
            return ""
        with self._system.open_input_file(f"{self._base}/{path}") as file:
            batches = pq.ParquetFile(file).iter_batches(columns=["token"])
            tokens = (token for batch in batches for token in batch["token"].to_pylist())
            found = any(" " in token or "⟨" in token for token in islice(tokens, _TOKENS_READ))
        return "" if found else " "
