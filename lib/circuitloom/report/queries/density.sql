-- How many features have which density, in some layers; bin 0 holds those that never fire.
SELECT run, layer, bin, low, high, n_features
FROM density_histogram
JOIN run USING (run)
WHERE list_contains({layers}, layer) AND (n_features > 0 OR bin = 0)
ORDER BY kind DESC, site_in, act, width, k, run, layer, bin
