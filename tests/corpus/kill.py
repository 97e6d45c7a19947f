"""Builds a corpus in small blocks: FOLDER CONFIG TOKENIZER. test_build.py runs and kills this script."""

import json
import sys
from pathlib import Path

from pydantic import TypeAdapter

from circuitloom.config.corpus import Corpus
from circuitloom.corpus import build
from circuitloom.corpus import tokens as token_store

if __name__ == "__main__":
    folder, config, tokenizer = sys.argv[1:]
    # many blocks and shards of a small corpus
    build.SEQUENCES_PER_SHARD = token_store.SEQUENCES_PER_SHARD = 64
    token_store.SEQUENCES_PER_CHUNK = 16
    source = build.TokenizerSource(tokenizer or None)
    build.build_corpus(TypeAdapter(Corpus).validate_python(json.loads(config)), Path(folder), 0, source)
