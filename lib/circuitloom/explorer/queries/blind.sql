SELECT protocol, place, tokens, precision, recall, f1
FROM blind
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY protocol
