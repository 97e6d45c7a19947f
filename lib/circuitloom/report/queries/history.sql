-- Training of each run in some layers, at most 60 points a curve.
WITH numbered AS (
    SELECT
        history.*,
        row_number() OVER (PARTITION BY run, layer ORDER BY step) AS place,
        count(*) OVER (PARTITION BY run, layer) AS n
    FROM history
    WHERE list_contains({layers}, layer)
)

SELECT run, layer, step, loss, fvu, dead
FROM numbered
JOIN run USING (run)
WHERE place % ceil(n / 60) = 0 OR place = n
ORDER BY kind DESC, site_in, act, width, k, run, layer, step
