SELECT run, layer, count(*) AS n_features, sum(n_tokens) AS n_activations
FROM feature
GROUP BY ALL
ORDER BY run, layer
