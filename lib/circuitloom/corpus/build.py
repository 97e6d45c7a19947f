"""From a config section to tokenizer, token arrays and tables."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import corpus as config
from ..core.atomic_io import discard, fingerprint, partial_folder
from ..core.progress import progress
from ..core.tables import TOKEN, write_table
from .chronicle.grammar import vocabulary
from .packing import Layout, PackedBlocks, pack, write_documents
from .source import TRAIN, VALIDATION, Document, Source, open_source, text_hash
from .tokenizer import Tokenizer, load_tokenizer, word_tokenizer
from .tokens import SEQUENCES_A_SHARD, write_tokens

OUTPUTS = ("tokenizer", "train.zarr", "validation.zarr", "document.parquet", "token.parquet")
"""What `build` makes, in its folder."""


@dataclass(frozen=True)
class TokenizerName:
    """Which tokenizer is asked for, and what the language model makes of it."""

    name: str | None = None
    """Folder or hub name; None is chronicle's own."""
    revision: str | None = None
    """Branch, tag or commit, on the hub."""
    model_vocabulary: int = 0
    """Tokens that the language model knows; 0 where it will be made to fit."""

    def load(self) -> Tokenizer:
        """The tokenizer; ValueError, with the remedy, where there is none."""
        return word_tokenizer(vocabulary()) if self.name is None else load_tokenizer(self.name, self.revision)

    def commit(self) -> str | None:
        """The commit that a tokenizer of the hub was loaded from; None for one that is not of the hub."""
        from huggingface_hub import try_to_load_from_cache

        if self.name is None or Path(self.name).is_dir():
            return None
        # the cache names a snapshot's folder after its commit
        file = try_to_load_from_cache(self.name, "tokenizer.json", revision=self.revision)
        return Path(file).parent.name if isinstance(file, str) else None


def build(
    section: config.Corpus,
    folder: Path,
    seed: int = 0,
    tokenizer: TokenizerName | None = None,
    version: str = "",
) -> None:
    """Write `OUTPUTS` into `folder`.

    Validation and training documents are disjoint: by a hash of their text, and where the source has a held-out part
    of its own, documents that occur in both are left out of the training part. A build that was killed is taken up
    again from `build.partial`; `version` is whatever else the result depends on, such as a hash of the code.
    Raises ValueError, in one line that names the key or file and the remedy, where there is no text, no tokenizer,
    or not enough for a sequence.
    """
    tokenizer = tokenizer or TokenizerName()
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source(section, seed, folder / "build.partial" / "datasets")
    layout = Layout(tokenizer.load(), section.context, tokenizer.model_vocabulary)
    # the choice of concepts touches no text
    asked = section.model_dump(mode="json", exclude={"concepts"})
    mark = fingerprint(
        section=asked, source=source.identity, tokenizer=layout.tokenizer.fingerprint, version=version
    )
    attributes = {
        "bos_id": layout.tokenizer.bos_id,
        "context": layout.context,
        "vocabulary": layout.tokenizer.vocabulary,
        "tokenizer": {"name": tokenizer.name, "revision": tokenizer.revision, "commit": tokenizer.commit()},
        "source": section.source,
        "revision": source.identity.get("revision"),
        "fingerprint": mark,
    }
    with partial_folder(folder / "build", mark) as partial:
        splits = _pack(section, source, layout, partial)
        _write(partial, splits, layout, attributes)
        _finish(partial, folder)


def _pack(section: config.Corpus, source: Source, layout: Layout, partial: Path) -> dict[str, PackedBlocks]:
    """All blocks of both splits; those that are there already are not made again."""
    validation, train = (PackedBlocks(partial / split, split) for split in (VALIDATION, TRAIN))
    _extend(validation, section.validation_tokens, source, layout, set())
    held_out = {text_hash(text) for text in validation.texts()}
    _extend(train, section.train_tokens, source, layout, held_out)
    return {TRAIN: train, VALIDATION: validation}


def _extend(
    parts: PackedBlocks, tokens: int | None, source: Source, layout: Layout, unwanted: set[int]
) -> None:
    """Pack a split to about so many tokens, documents whose text has an unwanted hash left out."""
    split, cursor = parts.split, parts.cursor
    limit = None if tokens is None else max(1, tokens // layout.context)
    documents = _unseen(source.documents(split, cursor.place), unwanted)
    if limit is None:
        bar = progress(
            f"corpus: {split}", source.characters[split], "characters", sum(map(len, parts.texts()))
        )
    else:
        bar = progress(
            f"corpus: {split}", limit * layout.context, "tokens", cursor.sequences * layout.context
        )
    with bar:
        for block in pack(documents, layout, cursor, SEQUENCES_A_SHARD, limit):
            parts.append(block)
            bar.update(sum(len(row.text) for row in block.rows) if limit is None else block.token.size)
    if not len(parts):
        raise ValueError(
            f"{source.name}: the {split} documents do not fill one sequence of {layout.context} tokens; "
            "give more text, or change corpus.context or corpus.validation_share"
        )


def _unseen(documents: Iterator[Document], texts: set[int]) -> Iterator[Document]:
    """The documents whose text is not among those with these hashes."""
    return (document for document in documents if text_hash(document.text) not in texts)


def _write(
    partial: Path, splits: dict[str, PackedBlocks], layout: Layout, attributes: dict[str, Any]
) -> None:
    layout.tokenizer.save(partial / "tokenizer")
    for split, parts in splits.items():
        write_tokens(partial / f"{split}.zarr", parts.arrays(), parts.cursor.sequences, attributes)
    write_documents(partial / "document.parquet", [splits[TRAIN], splits[VALIDATION]])
    write_table(TOKEN, _token_table(splits[VALIDATION], layout.tokenizer), partial / "token.parquet")


def _token_table(parts: PackedBlocks, tokenizer: Tokenizer) -> pa.Table:
    token, document = (np.concatenate(arrays) for arrays in zip(*parts.arrays(), strict=True))
    sequence, position = np.indices(token.shape)
    strings = pa.array(tokenizer.strings())
    return pa.table(
        {
            "sequence": sequence.ravel(),
            "position": position.ravel(),
            "document": document.ravel(),
            "token_id": token.ravel(),
            "token": strings.take(pa.array(token.ravel())),
        }
    )


def _finish(partial: Path, folder: Path) -> None:
    """Move the outputs to their places, and remove what they were made from."""
    for name in OUTPUTS:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        (partial / name).replace(target)
    discard(partial)
