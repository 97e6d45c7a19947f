SELECT *
FROM feature
WHERE run = {run} AND layer = {layer} AND feature = {feature}
