SELECT via, sign, rank, token, effect
FROM deembedding
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY CASE via WHEN 'direct' THEN 0 WHEN 'layer0' THEN 1 ELSE 2 END, via, sign DESC, rank
