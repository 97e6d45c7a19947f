SELECT sign, rank, token, effect
FROM logit
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY sign DESC, rank
