SELECT feature, f1 AS match
FROM features_on({pattern})
WHERE run = {run} AND layer = {layer}
