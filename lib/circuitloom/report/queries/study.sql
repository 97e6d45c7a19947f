-- One prompt as it was traced, token by token.
SELECT study, run, prompt, tokens, target
FROM study
WHERE study = {study}
