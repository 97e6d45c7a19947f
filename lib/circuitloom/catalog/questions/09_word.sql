-- Which features single out a word or phrase?
SELECT run, layer, feature, n_hits, round(precision, 3) AS precision, round(recall, 3) AS recall, round(f1, 3) AS f1
FROM features_on({pattern})
LIMIT 8
