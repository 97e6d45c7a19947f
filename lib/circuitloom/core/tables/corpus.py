"""Tables of the corpus."""

import pyarrow as pa

from .table import FLOAT, INT, POSITION, SEQUENCE, STRING, Table

DOCUMENT = Table(
    "document",
    "Documents of the corpus, in packing order.",
    ("split", "document"),
    {
        "split": (STRING, "train or validation"),
        "document": (pa.int32(), "number of the document within its split, from 0"),
        "n_tokens": (
            pa.int32(),
            "number of tokens, without BOS and EOS; of a document of more than 100,000 characters in which the split "
            "ends: the tokens before the end",
        ),
        "log_probability": (
            FLOAT,
            "log probability under the grammar that generated it, in nats; null for real text",
        ),
        "text": (STRING, "text of the document"),
    },
)
TOKEN = Table(
    "token",
    "Held-out tokens, one row per position.",
    ("sequence", "position"),
    {
        "sequence": SEQUENCE,
        "position": POSITION,
        "document": (pa.int32(), "number of the token's document"),
        "token_id": (pa.int32(), "token id"),
        "token": (STRING, "text of the token; a byte that is part of a character is written ⟨E4⟩"),
    },
)
CONCEPT = Table(
    "concept",
    "Concept annotations of held-out tokens: one row per token and concept that it has (generated text only).",
    ("concept", "sequence", "position"),
    {
        "concept": (pa.dictionary(pa.int16(), STRING), "name of the concept"),
        "sequence": SEQUENCE,
        "position": POSITION,
        "cues": (
            pa.list_(pa.list_(pa.int16())),
            "cues, each a list of positions: one token of each list is enough to know that the concept is present",
        ),
        "optional": (
            pa.list_(pa.int16()),
            "positions of tokens that carry no further information but may be read",
        ),
    },
)
NOTICE = Table(
    "notice",
    "What the corpus left out, changed or assumed. The table is empty if all text is used as it is.",
    ("subject", "kind"),
    {
        "subject": (STRING, "train, validation, text (both splits), or tokenizer"),
        "kind": (STRING, "what happened, such as blank or held_out"),
        "count": (INT, "number of items concerned; null if there is nothing to count"),
        "message": (STRING, "the notice as a sentence, with its unit and the first example"),
    },
)
