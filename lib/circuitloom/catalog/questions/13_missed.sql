-- Which concepts does no feature of any dictionary say well?
SELECT concept, round(max(f1), 3) AS best_f1, arg_max(run, f1) AS run, arg_max(found_layer, f1) AS layer, arg_max(feature, f1) AS feature
FROM concept_score
WHERE layer = -1 AND run NOT IN ('neurons', 'residual')
GROUP BY concept
ORDER BY best_f1
LIMIT 8
