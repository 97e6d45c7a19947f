-- Which features are about the place in the sequence, not about the text?
SELECT layer, feature, count(*) AS fires, mode(position) AS position, round(avg((position <= 3)::INT), 3) AS on_the_first_three
FROM activation
WHERE run = {run}
GROUP BY layer, feature
HAVING count(*) >= 50
ORDER BY on_the_first_three DESC, fires DESC
LIMIT 6
