-- Edges of a traced prompt's pruned graph, the strongest first, with what they join and what ablation measured.
-- example: SELECT source, target, effect, effect_frozen, effect_free FROM circuit_edges({trace}) LIMIT 5
CREATE OR REPLACE MACRO circuit_edges(of_trace) AS TABLE
WITH named AS (
    SELECT node, node_label(kind, layer, feature, head, token, position) AS label
    FROM node
    WHERE trace = of_trace
)

SELECT
    source.label AS source,
    target.label AS target,
    edge.effect,
    edge.effect_frozen,
    edge.effect_free,
    edge.source AS source_node,
    edge.target AS target_node
FROM edge
JOIN named AS source ON source.node = edge.source
JOIN named AS target ON target.node = edge.target
WHERE edge.trace = of_trace
ORDER BY abs(edge.effect) DESC, source_node, target_node;
