"""What the report asks the catalogue, one file of SQL each, its first line saying what comes out."""

from pathlib import Path

FOLDER = Path(__file__).parent


def query(name: str) -> str:
    """The SQL of the query `name`, with names in braces to be filled in."""
    return (FOLDER / f"{name}.sql").read_text().strip()
