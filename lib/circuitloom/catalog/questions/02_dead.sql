-- How many features of each run are dead, rare or dense?
SELECT
    run,
    count(*) AS features,
    round(avg((NOT alive)::INT), 3) AS dead,
    round(avg((alive AND density < 1e-4)::INT), 3) AS rarer_than_1_in_10000,
    round(avg((density > 0.1)::INT), 3) AS on_over_10_percent
FROM feature
GROUP BY run
ORDER BY run
