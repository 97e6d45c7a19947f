-- name: language_model
-- Scores of the language model on held-out text.
SELECT figure, value, unit, meaning
FROM language_model

-- name: metrics
-- Scores of each run and layer. Layer -1 means that all layers were replaced at once.
SELECT
    run, kind, act, width, layer, l0, fvu, fvu_median, cosine, ce, delta_ce, ce_recovered_zero, ce_recovered_mean, kl,
    alive, density_over_1_percent, density_over_10_percent
FROM metric
JOIN run USING (run)
ORDER BY kind DESC, site_in, act, width, k, run, layer = -1, layer

-- name: pareto
-- L0 and cross-entropy of each run when it replaces the MLP. Layer -1 means that all layers were replaced at once.
SELECT layer, kind, site_out, act, run, l0, fvu, ce, ce_original, ce_zero, ce_mean, ce_recovered_zero
FROM pareto
WHERE list_contains($layers, layer)
ORDER BY layer, kind DESC, site_out DESC, act, l0, run

-- name: traces
-- All traced prompts, with scores of how much of the target each graph explains.
SELECT
    trace, run, prompt, target, n_active, n_nodes, n_edges, replacement_score, completeness_score, identity_error,
    frozen_error, free_correlation, seconds
FROM trace
ORDER BY trace

-- name: trace
-- One traced prompt: its tokens, its target and the scores of its graph.
SELECT
    trace, run, prompt, tokens, target, notes, replacement_score, completeness_score, identity_error, frozen_error,
    free_correlation
FROM trace
WHERE trace = $trace

-- name: graph_nodes
-- Nodes of the pruned graph, most influential first, with the share of all influence down to each row, and labels of features.
SELECT
    nodes.node, nodes.label, nodes.kind, nodes.is_root, nodes.run, nodes.layer, nodes.feature, nodes.position, nodes.token,
    nodes.activation, nodes.value, nodes.influence, nodes.cumulative, nodes.probability, nodes.remainder,
    best.label AS feature_label, best.f1 AS label_f1
FROM circuit_nodes($trace) AS nodes
LEFT JOIN labels((SELECT run FROM trace WHERE trace = $trace), NULL) AS best
    ON best.run = nodes.run AND best.layer = nodes.layer AND best.feature = nodes.feature AND best.kind <> 'none'
ORDER BY nodes.influence DESC, nodes.node

-- name: paths
-- The strongest paths of the graph. Each one is written from its first node to the target.
SELECT path, effect, n_steps
FROM circuit_paths($trace)
ORDER BY abs(effect) DESC, number
LIMIT 12
