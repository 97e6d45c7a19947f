-- Nodes of a traced prompt's pruned graph, the most influential first, with the share that those up to each one hold.
-- example: SELECT label, influence, cumulative, value FROM circuit_nodes({trace}) LIMIT 5
CREATE OR REPLACE MACRO circuit_nodes(of_trace) AS TABLE
SELECT
    node,
    node_label(kind, layer, feature, head, token, position) AS label,
    kind,
    is_root,
    run,
    layer,
    feature,
    position,
    token,
    activation,
    value,
    influence,
    -- share of all influence that this node and those before it hold
    sum(influence) OVER (ORDER BY influence DESC, node) / sum(influence) OVER () AS cumulative,
    probability,
    remainder
FROM node
WHERE trace = of_trace AND in_graph
ORDER BY influence DESC, node;
