SELECT concept, rank, precision, recall, f1, threshold
FROM feature_concept
WHERE run = {run} AND layer = {layer} AND feature = {feature} AND f1 > 0
ORDER BY f1 DESC NULLS LAST, concept
