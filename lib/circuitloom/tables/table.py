"""What a table is, and the columns that many share."""

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Table:
    """A table: one Parquet file of this name wherever it is written."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: dict[str, tuple[pa.DataType, str]]
    """Column to (type, one-line meaning with unit)."""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, meanings included as field metadata."""
        fields = [pa.field(n, t, metadata={"meaning": meaning}) for n, (t, meaning) in self.columns.items()]
        return pa.schema(fields, metadata={"table": self.name, "key": ", ".join(self.key)})


STRING, FLOAT, INT = pa.string(), pa.float64(), pa.int64()
"""Types of most columns."""
SEQUENCE = (pa.int32(), "row of the split's token array")
POSITION = (pa.int16(), "place in the sequence, from 0 (the BOS in front)")
RUN_NAME = (STRING, "name of the dictionary's run")
LAYER = (pa.int16(), "block of the model, from 0")
FEATURE_NUMBER = (pa.int32(), "number of the feature, from 0")
