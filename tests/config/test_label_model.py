import pytest
from pydantic import ValidationError

from circuitloom.config.label_model import LabelModel

SERVER = {"endpoint": "http://localhost:8000/v1", "name": "m"}


def test_labels_have_the_name_of_the_model_as_source() -> None:
    assert LabelModel(**SERVER).source == "m"
    assert LabelModel(folder="/models/small/").source == "small"
    assert LabelModel(folder="/models/small", name="other").source == "other"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "give an endpoint"),
        ({**SERVER, "folder": "/models/small"}, "not both"),
        ({"endpoint": "http://localhost/v1"}, "set name"),
        ({"folder": "/models/small", "options": {"top_p": 1}}, "for an endpoint"),
        ({"endpoint": "localhost:8000", "name": "m"}, "is no address"),
        ({"endpoint": "http://h:port/v1", "name": "m"}, "is no address"),
        ({"endpoint": "http://me:secret@h/v1", "name": "m"}, "key_variable"),
        ({**SERVER, "name": "rule"}, "set another name"),
        ({**SERVER, "features": [3, 3]}, "list each once"),
        ({**SERVER, "features": []}, "lists no feature"),
        ({**SERVER, "key_variable": "sk-123"}, "key_variable"),
    ],
)
def test_settings_that_name_no_model_are_refused(keys: dict, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        LabelModel(**keys)


def test_variables_in_a_folder_are_expanded(monkeypatch) -> None:
    monkeypatch.setenv("MODELS", "/models")
    assert LabelModel(folder="${MODELS}/small").folder == "/models/small"
