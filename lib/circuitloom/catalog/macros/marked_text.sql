-- Tokens as one text, the one at `place` (from 0) in [[ ]].
-- example: SELECT marked_text(['the', 'war', 'lasted'], 1) AS text
CREATE OR REPLACE MACRO marked_text(tokens, place) AS
array_to_string(
    list_transform(tokens, lambda t, i: CASE WHEN i = place + 1 THEN '[[' || t || ']]' ELSE t END),
    spacing()
);
