SELECT path, effect, n_steps
FROM circuit_paths({study})
LIMIT 12
