SELECT layer, step, fvu, l0, dead
FROM history
WHERE run = {run}
ORDER BY layer, step
