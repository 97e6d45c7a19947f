SELECT run, layer, kind, act, l0, ce, ce_original, ce_zero, ce_recovered_zero, fvu
FROM pareto
WHERE layer = {layer}
ORDER BY kind DESC, act, l0
