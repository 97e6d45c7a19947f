-- The strongest paths, from where they end to what is explained.
SELECT path, effect, n_steps
FROM circuit_paths({trace})
ORDER BY abs(effect) DESC, number
LIMIT 12
