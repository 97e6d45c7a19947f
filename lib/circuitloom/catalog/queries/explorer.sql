-- name: contents
-- Number of runs, features, activations, traces and claims in the study.
SELECT
    (SELECT count(*) FROM run) AS runs,
    (SELECT count(*) FROM feature) AS features,
    (SELECT coalesce(sum(n_tokens), 0) FROM feature) AS activations,
    (SELECT count(*) FROM trace) AS traces,
    (SELECT count(*) FROM claim) AS claims,
    (SELECT count(*) FROM claim WHERE holds) AS claims_that_hold

-- name: claims
-- Claims of all case studies.
SELECT case_study, claim, statement, value, low, high, relation, bound, holds, n, "of"
FROM claim
ORDER BY case_study, claim

-- name: transcoders
-- Runs of transcoders and cross-layer transcoders. Runs with traced prompts come first.
SELECT run.run
FROM run
LEFT JOIN trace ON trace.run = run.run
WHERE kind IN ('transcoder', 'clt')
GROUP BY run.run
ORDER BY count(trace) DESC, run.run

-- name: run_history
-- Training curve of one run, for each layer.
SELECT layer, step, fvu, l0, dead
FROM history
WHERE run = $run
ORDER BY layer, step

-- name: run_density
-- Number of features of one run in each density bin, for each layer.
SELECT layer, bin, low, high, n_features
FROM density_histogram
WHERE run = $run
ORDER BY layer, bin

-- name: tabulated
-- Runs and layers that have feature tables.
SELECT run, layer, count(*) AS n_features, sum(n_tokens) AS n_activations
FROM feature
GROUP BY ALL
ORDER BY run, layer

-- name: features
-- Features of one layer, with the label of each, and the concept that each detects best.
SELECT
    feature.feature, described.label, described.label_f1, density, n_tokens, max_activation, mean_activation,
    encoder_norm, bias, best.concept, best.f1
FROM feature
LEFT JOIN (
    SELECT feature, label, f1 AS label_f1
    FROM labels($run, $layer)
    WHERE kind <> 'none'
) AS described USING (feature)
LEFT JOIN (
    SELECT feature, arg_max(concept, f1) AS concept, max(f1) AS f1
    FROM feature_concept
    WHERE run = $run AND layer = $layer AND f1 > 0
    GROUP BY feature
) AS best USING (feature)
WHERE run = $run AND layer = $layer

-- name: firing_on
-- Features of one layer, with the F1 of how well each detects tokens that match a regular expression.
SELECT feature, f1 AS match
FROM features_on($pattern)
WHERE run = $run AND layer = $layer

-- name: raising
-- Features of one layer for which a token is among the tokens whose logits they raise most.
SELECT feature, max(effect) AS match
FROM logit
WHERE run = $run AND layer = $layer AND sign = 1 AND (token = $pattern OR trim(whole_text(token)) = trim($pattern))
GROUP BY feature

-- name: labelled
-- Features of one layer whose label contains a text, with the F1 of the label.
SELECT feature, coalesce(f1, 0) AS match
FROM search_labels($pattern)
WHERE run = $run AND layer = $layer

-- name: labelled_elsewhere
-- Features of other layers and runs whose label contains a text, the best described first.
SELECT run, layer, feature, label, f1
FROM search_labels($pattern)
WHERE NOT (run = $run AND layer = $layer)
LIMIT $rows

-- name: has_labels
-- Whether a run has labels in a layer.
SELECT count(*) > 0 AS labelled
FROM label
WHERE run = $run AND layer = $layer

-- name: of_concept
-- Features that detect a concept best.
FROM features_of_concept($concept)

-- name: feature
-- Statistics of one feature.
SELECT *
FROM feature
WHERE run = $run AND layer = $layer AND feature = $feature

-- name: histogram
-- Histogram of one feature's activations.
SELECT low, high, n_tokens
FROM histogram
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY bin

-- name: examples
-- Examples of one feature. The largest activations come first, then a sample of each lower band of activations.
SELECT
    band, rank, sequence, position, activation, tokens, activations, position - window_start AS place,
    band_low, band_high, band_share
FROM example
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY CASE band WHEN 0 THEN 1000 ELSE band END DESC, rank

-- name: logits
-- Tokens whose logits one feature raises (sign 1) or lowers (sign -1) most by direct logit attribution.
SELECT sign, rank, token, effect
FROM logit
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY sign DESC, rank

-- name: deembedding
-- Input tokens that one feature's encoder responds to most, computed from the weights alone.
SELECT via, sign, rank, token, effect
FROM deembedding
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY CASE via WHEN 'direct' THEN 0 WHEN 'layer0' THEN 1 ELSE 2 END, via, sign DESC, rank

-- name: concepts
-- Concepts that one feature detects, highest F1 first.
SELECT concept, rank, precision, recall, f1, threshold
FROM feature_concept
WHERE run = $run AND layer = $layer AND feature = $feature AND f1 > 0
ORDER BY f1 DESC NULLS LAST, concept

-- name: blind
-- How well the weights alone predict the tokens that one feature fires on.
SELECT protocol, place, tokens, precision, recall, f1
FROM blind
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY protocol

-- name: upstream
-- Features of earlier layers that write into one feature, strongest effect first.
SELECT source_layer AS layer, source_feature AS feature, via, weight, mean_effect, mean_effect_when_active
FROM connection
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY abs(mean_effect_when_active) DESC NULLS LAST, abs(weight) DESC
LIMIT 15

-- name: downstream
-- Features of later layers that one feature writes into, strongest effect first.
SELECT layer, feature, via, weight, mean_effect, mean_effect_when_active
FROM connection
WHERE run = $run AND source_layer = $layer AND source_feature = $feature
ORDER BY abs(mean_effect_when_active) DESC NULLS LAST, abs(weight) DESC
LIMIT 15

-- name: alike
-- Features of all runs whose activations have the highest cosine similarity with those of one feature.
SELECT run, layer, feature, cosine, n_both
FROM similar_features($run, $layer, $feature)
LIMIT 20

-- name: nearest
-- Features of the same run that share the most tokens with one feature.
SELECT layer, feature, overlap, n_both, lift
FROM coactivation($run, $layer, $feature)
LIMIT 10

-- name: words
-- For each feature, the tokens of its largest activations, most frequent first.
SELECT layer, feature, list(token ORDER BY n DESC, first) AS tokens
FROM (
    -- the windows of the examples also contain the tokens, but reading the windows is ten times slower than this join
    SELECT example.layer, example.feature, any_value(token.token) AS token, min(example.rank) AS first, count(*) AS n
    FROM example
    JOIN token USING (sequence, position)
    WHERE run = $run AND layer IN $layers AND feature IN $features AND band = 0
    GROUP BY example.layer, example.feature, token.token_id
)
GROUP BY layer, feature

-- name: best_labels
-- For each feature, its best label by F1. Features that nothing describes are left out.
SELECT layer, feature, label, f1
FROM labels($run, NULL)
WHERE layer IN $layers AND feature IN $features AND kind <> 'none'

-- name: labels_of_feature
-- Labels of one feature from all sources, with their scores.
SELECT *
FROM label
WHERE run = $run AND layer = $layer AND feature = $feature
ORDER BY source IN ('frequent', 'planted'), f1 DESC NULLS LAST, source

-- name: promoted
-- For each feature, the three tokens whose logits it raises most.
SELECT layer, feature, list(token ORDER BY rank) AS tokens
FROM logit
WHERE run = $run AND layer IN $layers AND feature IN $features AND sign = 1 AND rank < 3
GROUP BY layer, feature

-- name: edges
-- All edges of the pruned graph, largest effect first.
SELECT source_node, target_node, source, target, effect, effect_frozen, effect_free
FROM circuit_edges($trace)

-- name: supernodes
-- Nodes of the graph that fire at one position and have equal labels or similar activations, grouped.
SELECT supernode, name, node, layer, feature, label, influence
FROM supernodes($trace, $least_cosine)

-- name: group_interventions
-- Interventions on groups of features. Ablations of a single node are left out.
SELECT label, intervention.kind, len(features) AS n_features, features[:6] AS first_features, strength, node.token, before, frozen, after
FROM intervention
JOIN node ON node.trace = intervention.trace AND node.node = intervention.root
WHERE intervention.trace = $trace AND NOT starts_with(label, 'node ')
ORDER BY intervention, root, frozen DESC

-- name: head_edges
-- Heads on the greedy paths of a circuit, with the positions that they read. What passes most to the root comes first.
SELECT layer, head, query, key, any_value(score) AS score, any_value(mean_score_plain) AS mean_score,
    any_value(pattern) AS pattern, any_value(contribution) AS contribution
FROM attention_score
WHERE trace = $trace
GROUP BY layer, head, query, key
ORDER BY abs(any_value(contribution)) DESC, layer, head, query, key

-- name: attended
-- Why a head reads a position: pairs of sources of its attention score, then sources of the query and of the key.
WITH best AS (
    SELECT layer, feature, label, f1
    FROM labels((SELECT run FROM trace WHERE trace = $trace), NULL)
    WHERE kind <> 'none'
)

SELECT score.kind, query_source, key_source, effect, relative_effect_plain, effect_frozen, effect_free, pattern_free, root_free,
    of_query.label AS query_label, of_query.f1 AS query_label_f1, of_key.label AS key_label, of_key.f1 AS key_label_f1
FROM attention_score AS score
LEFT JOIN best AS of_query
    ON of_query.layer = query_layer AND of_query.feature = query_feature AND query_kind = 'feature'
LEFT JOIN best AS of_key ON of_key.layer = key_layer AND of_key.feature = key_feature AND key_kind = 'feature'
WHERE trace = $trace AND score.layer = $layer AND head = $head AND query = $query AND key = $key
ORDER BY CASE score.kind WHEN 'pair' THEN 0 WHEN 'query' THEN 1 ELSE 2 END, rank
