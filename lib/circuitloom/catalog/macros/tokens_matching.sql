-- Tokens at which a match of a regular expression ends, of at most 100 characters, in the sequence's text up to there.
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
    -- where nothing in a whole sequence matches, nothing does up to a token, but for what looks at the text's end
    WHERE regexp_matches(pattern, '[$]|\\[bBz]') OR regexp_matches(whole.text, pattern)
)

SELECT sequence, position, document, token_id, token
FROM ending
WHERE
    CASE
        WHEN stop <= 100 THEN regexp_matches(substring(text, 1, stop), '(' || pattern || ')$')
        -- one character before those that may match, for ^ and \b to see
        ELSE regexp_matches(substring(text, stop - 100, 101), '(?s:.)(' || pattern || ')$')
    END
ORDER BY sequence, position;
