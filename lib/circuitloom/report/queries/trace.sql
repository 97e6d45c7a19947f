-- One prompt as it was traced, token by token.
SELECT trace, run, prompt, tokens, target
FROM trace
WHERE trace = {trace}
