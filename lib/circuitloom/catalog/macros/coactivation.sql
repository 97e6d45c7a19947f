-- Features of the same run, in any layer, that fire on the same tokens as a feature, by the overlap of the two.
-- example: SELECT layer, feature, n_both, overlap, lift FROM coactivation({run}, {layer}, {feature}) LIMIT 5
CREATE OR REPLACE MACRO coactivation(of_run, of_layer, of_feature) AS TABLE
WITH
mine AS (
    SELECT sequence, position
    FROM activation
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
),

firing AS (
    SELECT layer, unnest(unpacked(packed, n_features)) AS feature
    FROM code
    SEMI JOIN mine USING (sequence, position)
    WHERE run = of_run
),

together AS (
    SELECT layer, feature, count(*) AS n_both
    FROM firing
    GROUP BY ALL
)

SELECT
    together.layer,
    together.feature,
    n_both,
    -- share of the tokens on which either fires
    n_both / (this.n_tokens + other.n_tokens - n_both) AS overlap,
    -- share of this feature's tokens on which the other fires, and the reverse
    n_both / this.n_tokens AS share_of_this,
    n_both / other.n_tokens AS share_of_other,
    -- how many times as often as if they fired independently
    share_of_this / other.density AS lift
FROM together
JOIN feature AS other ON other.run = of_run AND other.layer = together.layer AND other.feature = together.feature
JOIN feature AS this ON this.run = of_run AND this.layer = of_layer AND this.feature = of_feature
WHERE NOT (together.layer = of_layer AND together.feature = of_feature)
ORDER BY overlap DESC, together.layer, together.feature;
