-- Which features raise a token's logit most, and when do they fire?
SELECT logit.layer, logit.feature, round(effect, 3) AS effect, marked_text(tokens, position - window_start) AS largest
FROM logit
JOIN example USING (run, layer, feature)
WHERE run = {run} AND token = {token} AND sign = 1 AND logit.rank < 3 AND band = 0 AND example.rank = 0
ORDER BY effect DESC
LIMIT 6
