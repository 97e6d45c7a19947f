from pathlib import Path

import pytest
from tests.activations.inputs import make_cache, make_order
from tests.models import ARCHITECTURES, tiny_model

from circuitloom.language_model.model import LanguageModel, load_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return tiny_model("gpt2", tmp_path_factory.mktemp("model") / "gpt2")


@pytest.fixture(scope="session")
def model(model_folder) -> LanguageModel:
    return load_model(model_folder, device="cpu")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_model(request, tmp_path_factory) -> LanguageModel:
    return load_model(
        tiny_model(request.param, tmp_path_factory.mktemp("model") / request.param), device="cpu"
    )


@pytest.fixture(scope="session")
def cached(model, tmp_path_factory) -> Path:
    """mlp_in of all layers of `model`, in float16; read only."""
    return make_cache(tmp_path_factory.mktemp("activations"), model, make_order())


@pytest.fixture
def cache(cached, tmp_path) -> Path:
    """A copy of `cached` that a test may damage."""
    import shutil

    return shutil.copytree(cached, tmp_path / "activations")
