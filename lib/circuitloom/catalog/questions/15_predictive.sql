-- Which features fire just before one of the tokens that they raise most?
WITH next AS (
    SELECT sequence, position - 1 AS position, token_id FROM token
),

raised AS (
    SELECT layer, feature, list(token_id) AS token_ids, list(token ORDER BY rank)[:3] AS tokens
    FROM logit
    WHERE run = {run} AND sign = 1
    GROUP BY ALL
)

SELECT layer, feature, count(*) AS fires, round(avg(list_contains(token_ids, token_id)::INT), 3) AS followed_by_one, any_value(tokens) AS raises
FROM activation
JOIN next USING (sequence, position)
JOIN raised USING (layer, feature)
WHERE run = {run}
GROUP BY layer, feature
HAVING count(*) >= 50
ORDER BY followed_by_one DESC, fires DESC
LIMIT 8
