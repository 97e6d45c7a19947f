SELECT *
FROM trace
WHERE trace = {trace}
