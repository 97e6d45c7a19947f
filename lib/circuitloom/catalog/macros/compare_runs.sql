-- Every metric of two runs side by side, layer by layer (-1: all layers replaced at once).
-- example: FROM compare_runs({run}, {other_run}) WHERE metric = 'fvu'
CREATE OR REPLACE MACRO compare_runs(one_run, other_run) AS TABLE
WITH long AS (
    UNPIVOT (SELECT * FROM metric WHERE run IN (one_run, other_run))
    ON COLUMNS(* EXCLUDE (run, layer)) INTO NAME metric VALUE value
)

SELECT
    one.layer,
    one.metric,
    one.value AS one,
    other.value AS other,
    one.value - other.value AS difference
FROM long AS one
JOIN long AS other ON one.layer = other.layer AND one.metric = other.metric
WHERE one.run = one_run AND other.run = other_run
ORDER BY one.layer, one.metric;
