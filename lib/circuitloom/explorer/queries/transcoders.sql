-- those that the study's own prompts were traced through come first
SELECT run.run
FROM run
LEFT JOIN trace ON trace.run = run.run
WHERE kind = 'transcoder'
GROUP BY run.run
ORDER BY count(trace) DESC, run.run
