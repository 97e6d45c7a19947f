SELECT layer, feature, list(token ORDER BY rank) AS tokens
FROM logit
WHERE run = {run} AND layer IN {layers} AND feature IN {features} AND sign = 1 AND rank < 3
GROUP BY layer, feature
