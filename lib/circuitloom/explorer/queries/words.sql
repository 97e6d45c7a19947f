SELECT layer, feature, list(token ORDER BY n DESC, first) AS tokens
FROM (
    SELECT layer, feature, tokens[position - window_start + 1] AS token, min(rank) AS first, count(*) AS n
    FROM example
    WHERE run = {run} AND layer IN {layers} AND feature IN {features} AND band = 0
    GROUP BY ALL
)
GROUP BY layer, feature
