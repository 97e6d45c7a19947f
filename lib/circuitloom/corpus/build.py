"""Builds a corpus from a config section. A corpus consists of a tokenizer, token arrays and tables."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import corpus as config
from ..core.atomic_io import fingerprint, partial_folder, remove_partial_folder
from ..core.hub import TEXT_FILES, hub_folder, is_hub_name
from ..core.notices import Notice, print_notices, write_notices
from ..core.progress import announce, progress
from ..core.tables import TOKEN, write_table
from .chat import ChatTemplate
from .generated import Grammar
from .grammars import grammar_of
from .packing import PackedBlocks, Packing, pack_documents, write_documents
from .source import MEANINGS, TRAIN, VALIDATION, Counts, Source, open_source, text_hash
from .token_arrays import SEQUENCES_PER_SHARD, write_tokens
from .tokenizer import Tokenizer, load_hugging_face_tokenizer, word_tokenizer
from .tokenizer_notices import text_notices, tokenizer_notices
from .unknown_words import UnknownWordError

OUTPUTS = (
    "tokenizer",
    "train.zarr",
    "validation.zarr",
    "document.parquet",
    "token.parquet",
    "notice.parquet",
)
"""Names of the files and folders that `build_corpus` writes."""
REST = "rest"
"""Kind of notice on tokens that do not fill a last sequence."""


@dataclass(frozen=True)
class TokenizerSource:
    """Describes which tokenizer to load."""

    name: str | None = None
    """Folder of the tokenizer, or its name on the Hugging Face hub. None means the words of the corpus's grammar."""
    revision: str | None = None
    """Branch, tag or commit of the tokenizer on the hub. None means the branch main."""
    model_vocabulary: int = 0
    """Vocabulary size of the language model. 0 if the model will get the tokenizer's vocabulary size."""

    def load(self, grammar: Grammar | None = None) -> Tokenizer:
        """Load the tokenizer, or make that of the words of `grammar` if there is no `name`. Raises ValueError if the
        tokenizer cannot be loaded."""
        if self.name is None:
            assert grammar is not None
            return word_tokenizer(grammar.vocabulary())
        # through transformers, so that the corpus's copy has all files that transformers knows
        return load_hugging_face_tokenizer(self.name, self.revision)

    def commit(self) -> str | None:
        """Returns the commit hash of a tokenizer of the hub. Returns None for other tokenizers."""
        if self.name is None or not is_hub_name(self.name, self.revision):
            return None
        # the hub's cache names each snapshot folder after its commit
        return hub_folder(self.name, self.revision or "main", TEXT_FILES, "corpus.tokenizer").name

    def describe(self, grammar: Grammar | None = None) -> str:
        """Returns which tokenizer is taken, in words. A folder is distinguished from a hub repository of its name."""
        if self.name is None:
            assert grammar is not None
            return f"tokenizer: the words of {grammar.name}"
        if commit := self.commit():
            return f"tokenizer: {self.name} from the hub, commit {commit}"
        also = ""
        if is_hub_name(self.name, "main"):
            also = f"; for {self.name} from the hub set corpus.tokenizer_revision"
        return f"tokenizer: {Path(self.name).expanduser().resolve()}{also}"


def build_corpus(
    section: config.Corpus,
    folder: Path,
    seed: int = 0,
    tokenizer: TokenizerSource | None = None,
    version: str = "",
) -> None:
    """Write the corpus into `folder`. `OUTPUTS` lists the files.

    A training document is left out if a validation document has the same text. Notices count these documents, and
    whatever else is left out. A killed build resumes from the folder `build.partial`. A change of source, tokenizer,
    config or `version` (a hash of the code) restarts the build. Raises ValueError if the source has no text, if the
    tokenizer does not load, or if the text does not fill one sequence.
    """
    tokenizer = tokenizer or TokenizerSource()
    folder.mkdir(parents=True, exist_ok=True)
    messages = getattr(section, "messages", None)
    grammar = grammar_of(section)
    packing = Packing(
        tokenizer.load(grammar), section.context, tokenizer.model_vocabulary, special=messages is not None
    )
    announce("corpus", tokenizer.describe(grammar))
    chat = None if messages is None else ChatTemplate(packing.tokenizer, messages)
    source = open_source(section, seed, folder / "build.partial" / "datasets", chat)
    # the choice of concepts does not change the text
    keys = section.model_dump(mode="json", exclude={"concepts"})
    digest = fingerprint(
        section=keys,
        source=source.identity,
        tokenizer=packing.tokenizer.fingerprint,
        version=version,
        chat=chat and chat.source,
    )
    attributes = {
        "bos_id": packing.tokenizer.bos_id,
        "separator_id": packing.tokenizer.separator_id,
        "context": packing.context,
        "vocabulary": packing.tokenizer.vocabulary,
        "tokenizer": {"name": tokenizer.name, "revision": tokenizer.revision, "commit": tokenizer.commit()},
        "source": section.source,
        "revision": source.identity.get("revision"),
        "fingerprint": digest,
    }
    with partial_folder(folder / "build", digest) as partial:
        splits, counts = _pack(section, source, packing, partial)
        notices = [*source.notices, *_notices(section, splits, packing), *_reading_notices(source, counts)]
        _write(partial, splits, packing, attributes, notices)
        _finish(partial, folder)
    print_notices("corpus", notices)


def _pack(
    section: config.Corpus, source: Source, packing: Packing, partial: Path
) -> tuple[dict[str, PackedBlocks], dict[str, Counts]]:
    """Returns the packed blocks of each split, and what was left out of it. Existing blocks are reused."""
    validation, train = (PackedBlocks(partial / split, split) for split in (VALIDATION, TRAIN))
    counts = {VALIDATION: _pack_split(validation, section.validation_tokens, source, packing, set())}
    # if the hash of a text decides its split, no text is in both
    held_out = {text_hash(text) for text in validation.texts()} if source.held_out is None else set()
    counts[TRAIN] = _pack_split(train, section.train_tokens, source, packing, held_out)
    return {TRAIN: train, VALIDATION: validation}, counts


def _pack_split(
    blocks: PackedBlocks,
    tokens: int | None,
    source: Source,
    packing: Packing,
    excluded: set[int],
) -> Counts:
    """Append about `tokens` tokens of a split to `blocks`. If `tokens` is None, append all tokens.

    A document is left out if `excluded` contains the hash of its text. Returns what was left out.
    """
    split, cursor = blocks.split, blocks.cursor
    limit = None if tokens is None else _sequences(tokens, packing)
    reading = source.read(split, cursor.place, cursor.counts, excluded)
    if limit is None:
        total, unit, done = source.characters[split], "characters", sum(map(len, blocks.texts()))
    else:
        total, unit, done = limit * packing.context, "tokens", cursor.sequences * packing.context
    with progress(f"corpus: {split}", total, unit, done) as bar:
        packed, rest = pack_documents(reading, packing, cursor, SEQUENCES_PER_SHARD, limit), None
        while True:
            try:
                block = next(packed)
            except StopIteration as end:
                rest = end.value
                break
            except UnknownWordError as error:
                file = source.files(split)[error.place.file]
                where = f"{file.path}, {file.unit} {error.place.row + 1}"
                raise ValueError(f"{where}: {error}") from error
            blocks.append(block)
            bar.update(sum(len(d.text) for d in block.documents) if limit is None else block.token.size)
    if not len(blocks):
        left_out = "".join(f" ({MEANINGS[kind]}: {count:,})" for kind, (count, _) in reading.counts.items())
        raise ValueError(
            f"{source.name}: the {split} documents do not fill one sequence of {packing.context} tokens; "
            f"give more text, or change corpus.context or corpus.validation_share{left_out}"
        )
    if rest is None:
        # rows after the last sequence, which a faster reader may have seen, do not count
        return blocks.cursor.counts
    whole = f"{rest.documents} whole documents among them" if rest.documents else ""
    return {**reading.counts, REST: (rest.tokens, whole)} if rest.tokens else reading.counts


def _reading_notices(source: Source, counts: Mapping[str, Counts]) -> list[Notice]:
    """Returns what was left out of the text, by kind. `counts` are those of each split."""
    found = {(split, kind): value for split, kinds in counts.items() for kind, value in kinds.items()}
    if source.held_out is not None:
        # both splits read the same rows; the one that reads further counts all of them
        both = {kind for _, kind in found} - {REST}
        merged = {("text", kind): max(found.pop((s, kind), (0, "")) for s in counts) for kind in both}
        found |= merged
    meanings = {**MEANINGS, REST: "tokens after the last complete sequence, left out"}
    notices = []
    for (subject, kind), (count, first) in found.items():
        detail = first if kind == REST else f"the first: {first}"
        message = f"{meanings[kind]}: {count:,}" + (f" ({detail})" if detail else "")
        notices.append(Notice(subject, kind, count, message))
    return notices


def _notices(section: config.Corpus, splits: dict[str, PackedBlocks], packing: Packing) -> list[Notice]:
    """Returns what the report must say about the text of each split."""
    notices = tokenizer_notices(packing.tokenizer)
    for split, limit in ((TRAIN, section.train_tokens), (VALIDATION, section.validation_tokens)):
        packed = splits[split].cursor.sequences
        if limit is not None and packed < _sequences(limit, packing):
            missing = (_sequences(limit, packing) - packed) * packing.context
            message = f"the text ends {missing:,} tokens before the {limit:,} of corpus.{split}_tokens"
            notices.append(Notice(split, "short", missing, message))
        notices += text_notices(packing, splits[split])
        if getattr(section, "separator", None) and splits[split].cursor.document <= 1:
            message = (
                "all tokens are of one document; does corpus.separator occur in the text as it is written?"
            )
            notices.append(Notice(split, "one_document", 1, message))
    return notices


def _sequences(tokens: int, packing: Packing) -> int:
    """Returns the number of sequences of about `tokens` tokens."""
    return max(1, tokens // packing.context)


def _write(
    partial: Path,
    splits: dict[str, PackedBlocks],
    packing: Packing,
    attributes: dict[str, Any],
    notices: list[Notice],
) -> None:
    packing.tokenizer.save(partial / "tokenizer")
    for split, blocks in splits.items():
        write_tokens(partial / f"{split}.zarr", blocks.arrays(), blocks.cursor.sequences, attributes)
    write_documents(partial / "document.parquet", [splits[TRAIN], splits[VALIDATION]], packing)
    write_table(TOKEN, _token_table(splits[VALIDATION], packing.tokenizer), partial / "token.parquet")
    write_notices(notices, partial / "notice.parquet")


def _token_table(blocks: PackedBlocks, tokenizer: Tokenizer) -> pa.Table:
    token, document = (np.concatenate(arrays) for arrays in zip(*blocks.arrays(), strict=True))
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
    """Move the outputs from `partial` to `folder`. Then remove `partial`."""
    for name in OUTPUTS:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        (partial / name).replace(target)
    remove_partial_folder(partial)
