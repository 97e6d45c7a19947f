-- Effects of edges from features: as predicted, and as measured by taking the source away; at most {edges}.
SELECT source, target, effect, effect_frozen, effect_free
FROM circuit_edges({trace})
JOIN node ON node.trace = {trace} AND node.node = source_node
WHERE node.kind = 'feature' AND effect_frozen IS NOT NULL
ORDER BY abs(effect) DESC, source_node, target_node
LIMIT {edges}
