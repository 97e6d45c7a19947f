SELECT layer, bin, low, high, n_features
FROM density_histogram
WHERE run = {run}
ORDER BY layer, bin
