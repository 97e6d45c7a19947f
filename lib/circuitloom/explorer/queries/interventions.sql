SELECT label, intervention.kind, len(features) AS n_features, features[:6] AS first_features, strength, node.token, before, frozen, after
FROM intervention
JOIN node ON node.trace = intervention.trace AND node.node = intervention.root
WHERE intervention.trace = {trace} AND NOT starts_with(label, 'node ')
ORDER BY intervention, root, frozen DESC
