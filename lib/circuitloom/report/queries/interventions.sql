-- What became of the target when features were changed: everything else held (frozen), and nothing held (free).
WITH changed AS (
    SELECT
        intervention,
        root,
        any_value(kind) AS kind,
        any_value(label) AS label,
        any_value(len(features)) AS features,
        any_value(strength) AS strength,
        any_value(before) AS before,
        max(after) FILTER (frozen) AS frozen,
        max(after) FILTER (NOT frozen) AS free
    FROM intervention
    WHERE trace = {trace}
    GROUP BY intervention, root
)

SELECT
    changed.kind,
    if(
        source.node IS NULL,
        changed.label,
        node_label(source.kind, source.layer, source.feature, source.head, source.token, source.position)
    ) AS changed,
    changed.features,
    changed.strength,
    node_label(node.kind, node.layer, node.feature, node.head, node.token, node.position) AS target,
    changed.before,
    changed.frozen,
    changed.free
FROM changed
JOIN node ON node.trace = {trace} AND node.node = changed.root
LEFT JOIN node AS source ON source.trace = {trace} AND changed.label = concat('node ', source.node)
WHERE changed.root = (SELECT min(root) FROM changed)
ORDER BY abs(coalesce(changed.frozen, changed.free) - changed.before) DESC, changed.intervention
LIMIT 12
