-- Which dictionary explains each layer best, and what does it cost the model?
SELECT run, layer, round(l0, 1) AS l0, round(fvu, 4) AS fvu, round(ce_recovered_zero, 4) AS ce_recovered, round(delta_ce, 4) AS delta_ce
FROM metric
WHERE layer >= 0
QUALIFY row_number() OVER (PARTITION BY layer ORDER BY fvu) <= 2
ORDER BY layer, fvu
