-- Dictionaries: what each reads and writes, and how it is sparse.
SELECT
    run, kind, site_in, site_out, act, width, k, sparsity, seed,
    coalesce((config ->> '$.skip') = 'true', false) AS skip
FROM run
WHERE kind IN ('transcoder', 'sae')
ORDER BY kind DESC, site_in, act, width, k, run
