-- Scores of each run, mean over its layers; delta CE and KL are also given with all layers replaced at once.
SELECT
    run,
    avg(l0) FILTER (layer >= 0) AS l0,
    avg(fvu) FILTER (layer >= 0) AS fvu,
    avg(delta_ce) FILTER (layer >= 0) AS delta_ce,
    avg(ce_recovered_zero) FILTER (layer >= 0) AS ce_recovered_zero,
    avg(kl) FILTER (layer >= 0) AS kl,
    avg(alive) FILTER (layer >= 0) AS alive,
    avg(density_over_10_percent) FILTER (layer >= 0) AS density_over_10_percent,
    max(delta_ce) FILTER (layer = -1) AS delta_ce_together,
    max(kl) FILTER (layer = -1) AS kl_together
FROM metric
JOIN run USING (run)
GROUP BY run, kind, site_in, act, width, k
ORDER BY kind DESC, site_in, act, width, k, run
