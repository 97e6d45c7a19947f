-- Tokens at which a match of a regular expression ends, in the text of up to 100 characters before.
-- example: SELECT sequence, position, token FROM tokens_matching({pattern}) LIMIT 3
CREATE OR REPLACE MACRO tokens_matching(pattern) AS TABLE
WITH
whole AS (
    SELECT sequence, string_agg(token, spacing() ORDER BY position) AS text
    FROM token
    GROUP BY sequence
),

ending AS (
    SELECT
        token.*,
        whole.text,
        (sum(length(token) + length(spacing())) OVER (PARTITION BY sequence ORDER BY position))::BIGINT
        - length(spacing()) AS stop
    FROM token
    JOIN whole USING (sequence)
    WHERE regexp_matches(whole.text, pattern)
)

SELECT sequence, position, document, token_id, token
FROM ending
WHERE regexp_matches(substring(text, greatest(1, stop - 99), least(stop, 100)), '(' || pattern || ')$');
