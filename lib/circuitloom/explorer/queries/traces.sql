SELECT
    trace, prompt, target, run, n_nodes, n_edges, replacement_score, completeness_score, identity_error, frozen_error,
    free_correlation
FROM trace
ORDER BY trace
