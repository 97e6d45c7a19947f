"""The generated pages and the JSON schema are up to date, complete, and accept every study."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from circuitloom.config.export_formats import EXPORT_FORMATS
from circuitloom.documentation import config_page, config_schema, exchange_page, formats_page, models_page

ROOT = Path(__file__).parents[1]
REMEDY = "run `circuitloom document`"
STUDIES = [ROOT / "config" / "config.yaml", *sorted((ROOT / "config" / "studies").glob("*.yaml"))]


def test_the_config_page_is_up_to_date() -> None:
    assert (ROOT / "config" / "README.md").read_text() == config_page(), REMEDY


def test_the_config_schema_is_up_to_date() -> None:
    assert (ROOT / "config" / "schema.json").read_text() == config_schema(), REMEDY


def test_the_formats_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "formats.md").read_text() == formats_page(), REMEDY


def test_the_page_of_models_is_up_to_date() -> None:
    assert (ROOT / "docs" / "models.md").read_text() == models_page(), REMEDY


def test_the_tables_of_export_formats_are_up_to_date() -> None:
    page = (ROOT / "docs" / "exchange.md").read_text()
    assert page == exchange_page(page), REMEDY
    assert all(page.count(f"\n| `{name}` | ") == 1 for name in EXPORT_FORMATS)


def test_every_key_and_column_has_a_meaning() -> None:
    rows = [line for line in (config_page() + formats_page()).splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.rstrip().endswith("|  |") and "section" not in row] == []


@pytest.fixture(scope="module")
def schema() -> jsonschema.protocols.Validator:
    """Checks studies. The schema itself is checked once, which takes longer than to check a study."""
    schema = json.loads(config_schema())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_names_the_schema_and_follows_it(
    study: Path, schema: jsonschema.protocols.Validator
) -> None:
    first, _, text = study.read_text().partition("\n")
    location = first.removeprefix("# yaml-language-server: $schema=")
    assert (study.parent / location).resolve() == ROOT / "config" / "schema.json"
    schema.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "change",
    [
        {"trainig": {}},
        {"training": {"widht": 64}},
        {"dictionaries": {"sweep": {"k": "many"}}},
        {"corpus": {"source": "books"}},
        {"cases": {"a": {"kind": "feature", "concpet": "x"}}},
    ],
    ids=str,
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(
    change: dict[str, Any], schema: jsonschema.protocols.Validator
) -> None:
    study = yaml.safe_load(STUDIES[0].read_text())
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(study | change)
