-- In what do two runs differ?
SELECT layer, metric, round(one, 4) AS one, round(other, 4) AS other, round(difference, 4) AS difference
FROM compare_runs({run}, {other_run})
WHERE metric IN ('fvu', 'l0', 'ce_recovered_zero', 'alive')
