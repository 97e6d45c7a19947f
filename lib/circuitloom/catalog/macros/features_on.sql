-- Features of any run and layer by how well they single out the tokens at which a match of a regular expression ends.
-- example: SELECT run, layer, feature, f1 FROM features_on({pattern}) LIMIT 5
CREATE OR REPLACE MACRO features_on(pattern) AS TABLE
WITH
wanted AS (
    SELECT sequence, position
    FROM tokens_matching(pattern)
    -- `features.tokens` may leave the last sequences out
    WHERE sequence <= (SELECT max(sequence) FROM code)
),

firing AS (
    SELECT code.run, code.layer, unnest(unpacked(packed, n_features)) AS feature
    FROM code
    SEMI JOIN wanted USING (sequence, position)
),

hits AS (
    SELECT run, layer, feature, count(*) AS n_hits
    FROM firing
    GROUP BY ALL
)

SELECT
    hits.run,
    hits.layer,
    hits.feature,
    n_hits,
    n_hits / feature.n_tokens AS precision,
    n_hits / (SELECT count(*) FROM wanted) AS recall,
    2 * n_hits / (feature.n_tokens + (SELECT count(*) FROM wanted)) AS f1
FROM hits
JOIN feature ON feature.run = hits.run AND feature.layer = hits.layer AND feature.feature = hits.feature
ORDER BY f1 DESC, hits.run, hits.layer, hits.feature;
