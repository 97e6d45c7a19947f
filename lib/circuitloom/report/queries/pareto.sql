-- Sparsity against cross-entropy with the dictionary in place of the MLP; layer -1: all layers replaced at once.
SELECT layer, kind, act, run, l0, ce, ce_original, ce_zero, ce_mean
FROM pareto
WHERE list_contains({layers}, layer)
ORDER BY layer, kind DESC, act, l0, run
