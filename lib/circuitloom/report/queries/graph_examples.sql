-- The three largest activations of each feature of the graph, with the tokens around them; here: which one it is.
WITH found AS (
    SELECT layer, feature, rank, activation, tokens, activations, position - window_start + 1 AS place
    FROM example
    JOIN (
        SELECT DISTINCT layer, feature
        FROM circuit_nodes({trace})
        WHERE kind = 'feature'
    ) USING (layer, feature)
    WHERE run = {run} AND band = 0 AND rank < 3
)

SELECT
    layer,
    feature,
    rank,
    activation,
    tokens[greatest(1, place - 14):place + 5] AS tokens,
    list_transform(activations[greatest(1, place - 14):place + 5], lambda x: round(x::DOUBLE, 2)) AS activations,
    least(place, 15)::INTEGER AS here
FROM found
ORDER BY layer, feature, rank
