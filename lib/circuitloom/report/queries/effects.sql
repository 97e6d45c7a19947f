-- Effects of edges from features: as predicted, and as measured by taking the source away; at most {edges}.
SELECT source, target, effect, effect_frozen, effect_free
FROM circuit_edges({study})
JOIN node ON node.study = {study} AND node.node = source_node
WHERE node.kind = 'feature' AND effect_frozen IS NOT NULL
ORDER BY abs(effect) DESC, source_node, target_node
LIMIT {edges}
