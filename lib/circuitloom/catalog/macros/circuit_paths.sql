-- Greedy paths of a traced prompt as text, from what they end in to the root, the largest contributions first.
-- example: SELECT path, effect FROM circuit_paths({trace}) LIMIT 5
CREATE OR REPLACE MACRO circuit_paths(of_trace) AS TABLE
SELECT
    string_agg(
        node_label(node.kind, node.layer, node.feature, node.head, node.token, node.position),
        ' > '
        ORDER BY path.step DESC
    ) AS path,
    arg_max(path.effect, path.step) AS effect,
    any_value(path.n_steps) AS n_steps,
    path.path AS number
FROM path
JOIN node ON node.trace = path.trace AND node.node = path.node
WHERE path.trace = of_trace
GROUP BY path.path
ORDER BY abs(arg_max(path.effect, path.step)) DESC, number;
