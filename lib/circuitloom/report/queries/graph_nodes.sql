-- Nodes of the prompt's pruned graph, the most influential first; cumulative is the share held up to each one.
SELECT
    node, label, kind, is_root, layer, feature, position, token, activation, value, influence, cumulative,
    probability, remainder
FROM circuit_nodes({trace})
