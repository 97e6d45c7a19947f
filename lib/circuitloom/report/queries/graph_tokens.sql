-- Tokens whose logits each feature of the graph raises (sign 1) or lowers (sign -1) most, directly.
SELECT DISTINCT layer, feature, sign, rank, logit.token, effect
FROM logit
JOIN (
    SELECT DISTINCT layer, feature
    FROM circuit_nodes({trace})
    WHERE kind = 'feature'
) USING (layer, feature)
WHERE run = {run} AND rank < 6
ORDER BY layer, feature, sign DESC, rank
