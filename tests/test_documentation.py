"""The reference pages say what the code says."""

from pathlib import Path

from circuitloom.documentation import config_page, formats_page

ROOT = Path(__file__).parents[1]
REMEDY = "run `python -m circuitloom document`"


def test_the_config_page_is_up_to_date() -> None:
    assert (ROOT / "config" / "README.md").read_text() == config_page(), REMEDY


def test_the_formats_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "formats.md").read_text() == formats_page(), REMEDY


def test_every_key_and_column_says_what_it_means() -> None:
    rows = [line for line in (config_page() + formats_page()).splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.rstrip().endswith("|  |") and "section" not in row] == []
