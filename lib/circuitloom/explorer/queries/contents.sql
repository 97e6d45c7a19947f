SELECT
    (SELECT count(*) FROM run) AS runs,
    (SELECT count(*) FROM feature) AS features,
    (SELECT coalesce(sum(n_tokens), 0) FROM feature) AS activations,
    (SELECT count(*) FROM trace) AS traces,
    (SELECT count(*) FROM claim) AS claims,
    (SELECT count(*) FROM claim WHERE holds) AS claims_that_hold
