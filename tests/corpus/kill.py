"""Builds the corpus that its arguments describe, in small blocks: run by test_build.py, which kills it."""

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
    build.SEQUENCES_A_SHARD = token_store.SEQUENCES_A_SHARD = 64
    token_store.SEQUENCES_A_CHUNK = 16
    name = build.TokenizerName(tokenizer or None)
    build.build(TypeAdapter(Corpus).validate_python(json.loads(config)), Path(folder), 0, name)
