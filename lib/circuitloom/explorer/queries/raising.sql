SELECT feature, max(effect) AS match
FROM logit
WHERE run = {run} AND layer = {layer} AND sign = 1 AND trim(token) = trim({pattern})
GROUP BY feature
