-- Concepts by run: how well the best feature of each says that a token takes part in it.
SELECT
    run,
    count(*) AS concepts,
    avg(f1) AS mean_f1,
    median(f1) AS median_f1,
    count_if(f1 >= 0.8) AS found_at_0_8,
    count_if(f1 >= 0.5) AS found_at_0_5
FROM concept_score
JOIN run USING (run)
WHERE layer = -1
GROUP BY run
ORDER BY mean_f1 DESC, run
