-- Edges of a traced prompt's pruned graph, the strongest first, with what they join and what ablation measured.
-- example: SELECT source, target, effect, effect_frozen, effect_free FROM circuit_edges({study}) LIMIT 5
CREATE OR REPLACE MACRO circuit_edges(of_study) AS TABLE
WITH named AS (
    SELECT node, node_label(kind, layer, feature, head, token, position) AS label
    FROM node
    WHERE study = of_study
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
WHERE edge.study = of_study
ORDER BY abs(edge.effect) DESC, source_node, target_node;
