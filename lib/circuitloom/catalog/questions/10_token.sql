-- Which features make up the code of one token, and how strongly?
SELECT layer, feature, round(activation.activation, 3) AS activation, token.token, round(density, 4) AS density
FROM activation
JOIN token USING (sequence, position)
JOIN feature USING (run, layer, feature)
WHERE run = {run} AND layer = {layer} AND sequence = 3 AND position = 20
ORDER BY activation.activation DESC
