SELECT path, effect, n_steps
FROM circuit_paths({trace})
LIMIT 12
