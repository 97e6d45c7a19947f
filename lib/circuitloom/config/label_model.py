"""Config of labels that a language model writes and judges."""

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..core.layout import FREQUENT, PLANTED, RULE
from .base import ExpandedPath, Section


class LabelModel(Section):
    """A language model that writes a label for some features from their examples, and then judges it on other
    documents. Give `endpoint` and `name`, or `folder`."""

    endpoint: str | None = None
    """Address of a server with OpenAI's chat completions, such as `http://localhost:8000/v1` (vLLM, llama.cpp, Ollama,
    or a hosted model). Texts of the corpus are sent to it, and to no other address."""
    name: str | None = None
    """Name of the model, as the server knows it. It is the `source` of the labels. Of a model in a folder, the default
    is the folder's name."""
    key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the server's key, such as `OPENAI_API_KEY`. With null, no key is sent."""
    folder: ExpandedPath | None = None
    """Folder of a language model in the Hugging Face layout, which is run here. A model with a chat template follows
    the instructions best."""
    runs: list[str] | None = None
    """Runs whose features are labelled. With null, it is the run that prompts are traced through."""
    features: PositiveInt | list[NonNegativeInt] = 50
    """Features that are labelled in each layer: a number of them, evenly spaced among those that fire, or a list."""
    examples: PositiveInt = 15
    """Number of examples that the model sees of a feature, from all bands of activation."""
    contexts: PositiveInt = 10
    """Number of tokens of each sort on which the model judges a label: tokens on which the feature fires (from all
    bands of activation), tokens near them, tokens on which a similar feature fires, and others. Each is a question to
    the model."""
    concurrency: PositiveInt = 4
    """Number of questions that are sent at one time, or that a model in a folder answers at one time."""
    timeout: PositiveFloat = 120
    """Seconds after which a question without an answer is sent again."""
    attempts: PositiveInt = 5
    """Number of times that a question is sent, if the server is busy, fails or does not answer. The waits between them
    are 1, 2, 4, ... seconds, or what the server asks for."""
    options: dict[str, Any] = {}
    """Further fields of each request, such as `{max_tokens: null, max_completion_tokens: 2000}` for a model that thinks
    before it answers. A value of null removes a field. They do not apply to a model in a folder."""

    @property
    def source(self) -> str:
        """Name of the model, in the column `source` of its labels."""
        return self.name or (self.folder or "").rstrip("/").rpartition("/")[2]

    @model_validator(mode="after")
    def _one_model(self) -> "LabelModel":
        if (self.endpoint is None) == (self.folder is None):
            raise ValueError("give an endpoint with the name of its model, or a folder, but not both")
        if self.endpoint is None:
            if self.key_variable or self.options:
                raise ValueError(
                    "key_variable and options are for an endpoint; remove them, or name an endpoint"
                )
        else:
            if not self.name:
                raise ValueError(
                    "an endpoint has several models; set name, such as the name under ENDPOINT/models"
                )
            check_endpoint(self.endpoint)
        if not self.source or self.source in (RULE, FREQUENT, PLANTED):
            raise ValueError(
                f"a model cannot be called {self.source!r} in the table of labels; set another name"
            )
        if isinstance(self.features, list) and (
            not self.features or len(set(self.features)) < len(self.features)
        ):
            raise ValueError("features lists no feature, or one twice; list each once, or give a number")
        return self


def check_endpoint(endpoint: str) -> None:
    """Raises ValueError if `endpoint` is no address of a server, or contains a password."""
    try:
        parts = urlsplit(endpoint)
        valid = (
            endpoint.isascii()
            and endpoint.isprintable()
            and " " not in endpoint
            and (
                parts.scheme in ("http", "https")
                and bool(parts.hostname)
                and (parts.port is None or parts.port > 0)
            )
        )
    # a port that is no number, or a bracket that is not closed
    except ValueError:
        valid, parts = False, None
    if not valid:
        raise ValueError(f"endpoint: {endpoint!r} is no address; write one such as http://localhost:8000/v1")
    if parts is not None and (parts.username or parts.password):
        raise ValueError(
            "endpoint: an address with a password would be written into results; name a key_variable instead"
        )
