SELECT layer, feature, list(token ORDER BY n DESC, first) AS tokens
FROM (
    -- the windows of examples hold the token too, but reading many of them takes ten times as long
    SELECT example.layer, example.feature, token.token, min(example.rank) AS first, count(*) AS n
    FROM example
    JOIN token USING (sequence, position)
    WHERE run = {run} AND layer IN {layers} AND feature IN {features} AND band = 0
    GROUP BY ALL
)
GROUP BY layer, feature
