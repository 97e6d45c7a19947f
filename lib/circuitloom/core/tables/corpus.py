"""Tables of the corpus."""

import pyarrow as pa

from .table import FLOAT, POSITION, SEQUENCE, STRING, Table

DOCUMENT = Table(
    "document",
    "Documents of the corpus, in the order in which they were packed.",
    ("split", "document"),
    {
        "split": (STRING, "train or validation"),
        "document": (pa.int32(), "number of the document within its split, from 0"),
        "n_tokens": (pa.int32(), "tokens, without the BOS in front"),
        "log_probability": (FLOAT, "log p under the grammar that generated it, in nats; null for real text"),
        "text": (STRING, "the document"),
    },
)
TOKEN = Table(
    "token",
    "Held-out tokens, one row a position.",
    ("sequence", "position"),
    {
        "sequence": SEQUENCE,
        "position": POSITION,
        "document": (pa.int32(), "document the token belongs to"),
        "token_id": (pa.int32(), "number of the token in the vocabulary"),
        "token": (STRING, "the token as text"),
    },
)
CONCEPT = Table(
    "concept",
    "Which planted concepts each held-out token takes part in (chronicle only).",
    ("concept", "sequence", "position"),
    {
        "concept": (pa.dictionary(pa.int16(), STRING), "name of the concept"),
        "sequence": SEQUENCE,
        "position": POSITION,
        "cues": (
            pa.list_(pa.list_(pa.int16())),
            "what tells the label: positions of tokens, one of each list being needed",
        ),
        "optional": (pa.list_(pa.int16()), "positions of tokens that may be read as well, needed by none"),
    },
)
