-- Was training long enough: how much did the last tenth of the steps still gain?
SELECT
    run,
    layer,
    round(avg(fvu) FILTER (share BETWEEN 0.8 AND 0.9), 4) AS fvu_before,
    round(avg(fvu) FILTER (share > 0.9), 4) AS fvu_at_the_end,
    round(avg(dead) FILTER (share > 0.9), 3) AS dead_at_the_end
FROM (SELECT *, step / max(step) OVER (PARTITION BY run, layer) AS share FROM history)
WHERE run IN ({run}, {other_run})
GROUP BY run, layer
ORDER BY run, layer
