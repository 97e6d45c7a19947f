-- Layers whose dictionaries were scored; -1: all replaced at once.
SELECT DISTINCT layer
FROM metric
ORDER BY layer
