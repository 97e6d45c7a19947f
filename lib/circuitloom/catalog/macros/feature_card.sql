-- All that is known of a feature, one line a fact.
-- example: FROM feature_card({run}, {layer}, {feature})
CREATE OR REPLACE MACRO feature_card(of_run, of_layer, of_feature) AS TABLE
WITH
facts AS (
    UNPIVOT (
        SELECT
            format('{:.4g}', density) AS density,
            n_tokens::VARCHAR AS n_tokens,
            format('{:.4g}', max_activation) AS max_activation,
            format('{:.4g}', mean_activation) AS mean_activation,
            format('{:.4g}', decoder_norm) AS decoder_norm,
            format('{:.4g}', encoder_norm) AS encoder_norm,
            format('{:.4g}', bias) AS bias
        FROM feature
        WHERE run = of_run AND layer = of_layer AND feature = of_feature
    )
    ON * INTO NAME what VALUE value
),

effects AS (
    SELECT
        CASE sign WHEN 1 THEN 'raises' ELSE 'lowers' END AS what,
        string_agg(format('{} ({:+.3f})', token, effect), ', ' ORDER BY rank) AS value
    FROM logit
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
    GROUP BY sign
),

concepts AS (
    SELECT 'concepts' AS what, string_agg(format('{} (F1 {:.3f})', concept, f1), ', ' ORDER BY f1 DESC, concept) AS value
    FROM feature_concept
    WHERE run = of_run AND layer = of_layer AND feature = of_feature AND f1 > 0
    HAVING count(*) > 0
),

examples AS (
    SELECT
        CASE band WHEN 0 THEN 'largest ' || rank ELSE 'band ' || band END AS what,
        format('{:8.3f}  {}', activation, marked_text(tokens, position - window_start)) AS value,
        band,
        rank
    FROM example
    WHERE run = of_run AND layer = of_layer AND feature = of_feature AND rank < CASE band WHEN 0 THEN 8 ELSE 1 END
)

SELECT what, value
FROM (
    SELECT
        1 AS part,
        list_position(
            ['density', 'n_tokens', 'max_activation', 'mean_activation', 'decoder_norm', 'encoder_norm', 'bias'], what
        ) AS place,
        what,
        value
    FROM facts
    UNION ALL
    SELECT 2, CASE what WHEN 'raises' THEN 0 ELSE 1 END, what, value FROM effects
    UNION ALL
    SELECT 3, 0, what, value FROM concepts
    UNION ALL
    -- the largest first, then the bands downwards
    SELECT 4, CASE band WHEN 0 THEN rank ELSE 1000 - band END, what, value FROM examples
)
ORDER BY part, place;
