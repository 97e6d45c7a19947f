-- The list of features that a row of `code` packs: n numbers, each of as many bytes.
-- example: SELECT unpacked('\x00\x07\x01\x00'::BLOB, 2) AS features
CREATE OR REPLACE MACRO unpacked(packed, n) AS
list_transform(
    range(n::BIGINT),
    lambda i: (
        '0x' || substring(
            hex(packed),
            (2 * i * octet_length(packed) // n + 1)::BIGINT,
            (2 * octet_length(packed) // n)::BIGINT
        )
    )::INTEGER
);
