SELECT run
FROM run
WHERE kind = 'transcoder'
