SELECT
    metric.run, run.kind, run.act, run.width, metric.layer, l0, fvu, ce_recovered_zero, delta_ce, kl, alive,
    density_over_1_percent
FROM metric
JOIN run USING (run)
ORDER BY metric.run, metric.layer
