SELECT low, high, n_tokens
FROM histogram
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY bin
