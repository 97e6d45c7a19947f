import pytest
from tests.models import tiny_model

from circuitloom.language_model.model import LanguageModel, load_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> LanguageModel:
    return load_model(tiny_model("llama", tmp_path_factory.mktemp("model") / "llama"), device="cpu")


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def sequential_model(request, tmp_path_factory) -> LanguageModel:
    """LayerNorm and RMSNorm, blocks in which the MLP follows attention."""
    return load_model(
        tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param), device="cpu"
    )


@pytest.fixture(scope="session", params=["gpt2", "llama", "neox"])
def any_model(request, tmp_path_factory) -> LanguageModel:
    return load_model(
        tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param), device="cpu"
    )
