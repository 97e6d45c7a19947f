-- Scores of each run and layer; layer -1: all layers replaced at once.
SELECT
    run, layer, l0, fvu, cosine, ce, delta_ce, ce_recovered_zero, ce_recovered_mean, kl, alive,
    density_over_1_percent, density_over_10_percent
FROM metric
JOIN run USING (run)
ORDER BY kind DESC, site_in, act, width, k, run, layer = -1, layer
