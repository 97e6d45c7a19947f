-- What do the densest features of a run fire on?
SELECT feature.layer, feature.feature, round(density, 3) AS density, marked_text(tokens, position - window_start) AS largest
FROM feature
JOIN example USING (run, layer, feature)
WHERE feature.run = {run} AND band = 0 AND rank = 0
ORDER BY density DESC
LIMIT 5
