-- Loss while the language model was pretrained, at most 300 points.
WITH numbered AS (
    SELECT
        step * {step_tokens} AS tokens,
        loss,
        row_number() OVER (ORDER BY step) AS place,
        count(*) OVER () AS n
    FROM pretraining
)

SELECT tokens, loss
FROM numbered
WHERE place % ceil(n / 300) = 0 OR place = n
ORDER BY tokens
