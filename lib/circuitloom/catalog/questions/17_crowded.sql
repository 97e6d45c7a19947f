-- On which tokens do most features fire?
SELECT token, count(*) AS times, round(avg(n_features), 1) AS features
FROM code
JOIN token USING (sequence, position)
WHERE run = 'neurons' AND layer = {layer}
GROUP BY token
HAVING count(*) >= 20
ORDER BY features DESC, token
LIMIT 6
