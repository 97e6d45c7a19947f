-- Which features stand for a concept?
SELECT run, layer, feature, round(precision, 3) AS precision, round(recall, 3) AS recall, round(f1, 3) AS f1, round(density, 4) AS density
FROM features_of_concept({concept})
LIMIT 8
