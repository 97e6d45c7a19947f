-- Prompts that were traced, and how much of each target its graph explains.
SELECT
    trace, run, target, n_active, n_nodes, n_edges, replacement_score, completeness_score, identity_error,
    frozen_error, free_correlation, seconds
FROM trace
ORDER BY trace
