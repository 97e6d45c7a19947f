import pytest
from tests.corpus.inputs import bpe, built


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Folder of a BPE tokenizer whose BOS has id 0."""
    return bpe(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def chronicle(tmp_path_factory):
    """Folder of a small generated corpus."""
    folder = tmp_path_factory.mktemp("chronicle")
    return built(folder, source="chronicle", context=128, train_tokens=20_000, validation_tokens=10_000)
