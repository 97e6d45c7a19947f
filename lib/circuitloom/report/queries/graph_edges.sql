-- Edges of the prompt's pruned graph, at most {edges}, those that are most of their target's strongest first.
WITH compared AS (
    SELECT *, abs(effect) / nullif(max(abs(effect)) OVER (PARTITION BY target_node), 0) AS strength
    FROM circuit_edges({trace})
)

SELECT source_node, target_node, effect, effect_frozen, effect_free, strength
FROM compared
ORDER BY strength DESC NULLS LAST, target_node, source_node
LIMIT {edges}
