-- Do dictionaries name concepts better than neurons and residual directions do?
SELECT run, count(*) AS concepts, round(avg(coalesce(f1, 0)), 3) AS mean_f1, count(*) FILTER (f1 >= 0.8) AS f1_over_80
FROM concept_score
WHERE layer = -1
GROUP BY run
ORDER BY mean_f1 DESC
