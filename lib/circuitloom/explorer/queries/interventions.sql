SELECT label, intervention.kind, len(features) AS n_features, features[:6] AS first_features, strength, node.token, before, frozen, after
FROM intervention
JOIN node ON node.study = intervention.study AND node.node = intervention.root
WHERE intervention.study = {study} AND NOT starts_with(label, 'node ')
ORDER BY intervention, root, frozen DESC
