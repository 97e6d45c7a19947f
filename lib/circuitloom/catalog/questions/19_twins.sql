-- Which features of one layer show the same examples, and so may be one feature split in two?
SELECT one.layer, one.feature AS one, other.feature AS other, count(*) AS shared_of_20, any_value(one.tokens[one.position - one.window_start + 1]) AS token
FROM example AS one
JOIN example AS other USING (run, layer, sequence, position)
WHERE run = {run} AND one.band = 0 AND other.band = 0 AND one.feature < other.feature
GROUP BY ALL
ORDER BY shared_of_20 DESC, one.layer, one.feature, other.feature
LIMIT 6
