-- name: glance
-- Key figures of the study. Each one has a unit and a note on its origin.
WITH figures AS (
    SELECT 1 AS place, 'language model: cross-entropy on held-out text' AS figure, value, unit, meaning AS detail
    FROM language_model
    WHERE figure = 'cross_entropy_every'
    UNION ALL
    SELECT 2, 'language model: parameters', value, unit, meaning
    FROM language_model
    WHERE figure = 'parameters'
    UNION ALL
    SELECT
        3,
        'dictionaries trained or imported',
        count(*),
        'dictionaries',
        concat(count(DISTINCT run), ' runs, ', count(DISTINCT layer), ' layers')
    FROM metric
    WHERE layer >= 0
    UNION ALL
    (
        SELECT
            4,
            'lowest rise of cross-entropy with a transcoder in place',
            delta_ce,
            'nats per token',
            concat(
                run,
                if(layer = -1, ', all layers replaced', concat(', layer ', layer)),
                ', L0 ',
                round(l0, 1)
            )
        FROM metric
        JOIN run USING (run)
        WHERE kind IN ('transcoder', 'clt')
        ORDER BY layer = -1 DESC, delta_ce, run
        LIMIT 1
    )
    UNION ALL
    (
        SELECT
            5,
            'planted concepts with a feature of F1 at least 0.8',
            count_if(f1 >= 0.8),
            concat('of ', count(*)),
            concat(run, ', best layer of each concept')
        FROM concept_score
        JOIN run USING (run)
        WHERE layer = -1 AND kind IN ('transcoder', 'clt')
        GROUP BY run
        ORDER BY count_if(f1 >= 0.8) DESC, run
        LIMIT 1
    )
    UNION ALL
    SELECT
        6,
        'prompts traced',
        count(*),
        'prompts',
        concat('sums of sources add up to within ', printf('%.1e', max(identity_error)))
    FROM trace
    HAVING count(*) > 0
    UNION ALL
    SELECT
        7,
        'claims of case studies that hold',
        count_if(holds),
        concat('of ', count(*)),
        concat(count(DISTINCT case_study), ' case studies')
    FROM claim
    HAVING count(*) > 0
)

SELECT figure, value, unit, detail
FROM figures
WHERE value IS NOT NULL
ORDER BY place

-- name: corpus
-- Number of documents and tokens in each split of the corpus.
SELECT split, count(*) AS documents, sum(n_tokens)::BIGINT AS tokens
FROM document
GROUP BY split
ORDER BY split

-- name: notices
-- What the corpus left out, changed or assumed.
SELECT subject, kind, count, message
FROM notice
ORDER BY subject, kind

-- name: pretraining
-- Loss of the language model during pretraining, with at most 300 points.
WITH numbered AS (
    SELECT
        step * $step_tokens AS tokens,
        loss,
        row_number() OVER (ORDER BY step) AS place,
        count(*) OVER () AS n
    FROM pretraining
)

SELECT tokens, loss
FROM numbered
WHERE place % ceil(n / 300) = 0 OR place = n
ORDER BY tokens

-- name: runs
-- All dictionary runs, with the sites that each one reads and writes and with its kind of sparsity.
SELECT
    run, kind, site_in, site_out, act, width, k, sparsity, seed,
    coalesce((config ->> '$.skip') = 'true', false) AS skip
FROM run
WHERE kind IN ('transcoder', 'sae', 'clt')
ORDER BY kind DESC, site_in, act, width, k, run

-- name: layers
-- Layers whose dictionaries are scored. Layer -1 means that all layers were replaced at once.
SELECT DISTINCT layer
FROM metric
ORDER BY layer

-- name: metric_mean
-- Mean scores of each run over its layers. Delta CE and KL are also given with all layers replaced at once.
SELECT
    run,
    avg(l0) FILTER (layer >= 0) AS l0,
    avg(fvu) FILTER (layer >= 0) AS fvu,
    avg(fvu_median) FILTER (layer >= 0) AS fvu_median,
    avg(delta_ce) FILTER (layer >= 0) AS delta_ce,
    avg(ce_recovered_zero) FILTER (layer >= 0) AS ce_recovered_zero,
    avg(kl) FILTER (layer >= 0) AS kl,
    avg(alive) FILTER (layer >= 0) AS alive,
    avg(density_over_10_percent) FILTER (layer >= 0) AS density_over_10_percent,
    max(delta_ce) FILTER (layer = -1) AS delta_ce_together,
    max(kl) FILTER (layer = -1) AS kl_together
FROM metric
JOIN run USING (run)
GROUP BY run, kind, site_in, act, width, k
ORDER BY kind DESC, site_in, act, width, k, run

-- name: activation_norm
-- Norms of the training activations, and the share of the squared norm that 0.1 % of the tokens hold.
SELECT
    site, layer, n_tokens, median_norm, largest_norm, largest_over_median, top_share, n_over_10, n_over_100, token
FROM activation_norm
ORDER BY site, layer

-- name: outliers
-- Tokens of very large norm that training left out or capped, and tokens that the scores leave out.
SELECT run, layer, coalesce(trained.outliers, 0) AS outliers_in_training, n_left_out AS outliers_in_scores
FROM metric
LEFT JOIN (
    SELECT run, layer, max(outliers) AS outliers
    FROM history
    GROUP BY run, layer
) AS trained USING (run, layer)
WHERE trained.outliers > 0 OR n_left_out > 0
ORDER BY run, layer

-- name: density
-- Number of features in each density bin, for some layers. Bin 0 counts dead features.
SELECT run, layer, bin, low, high, n_features
FROM density_histogram
JOIN run USING (run)
WHERE list_contains($layers, layer) AND (n_features > 0 OR bin = 0)
ORDER BY kind DESC, site_in, act, width, k, run, layer, bin

-- name: history
-- Training curves of each run for some layers, with at most 60 points per curve.
WITH numbered AS (
    SELECT
        history.*,
        row_number() OVER (PARTITION BY run, layer ORDER BY step) AS place,
        count(*) OVER (PARTITION BY run, layer) AS n
    FROM history
    WHERE list_contains($layers, layer)
)

SELECT run, layer, step, loss, fvu, dead
FROM numbered
JOIN run USING (run)
WHERE place % ceil(n / 60) = 0 OR place = n
ORDER BY kind DESC, site_in, act, width, k, run, layer, step

-- name: compared
-- Groups of runs that case studies compare: means over the runs of a group, and over the prompts traced through them.
SELECT *
FROM (
    SELECT
        case_study,
        group_name,
        count(*) AS runs,
        avg(parameters) AS parameters,
        avg(l0) AS l0,
        avg(fvu) AS fvu,
        avg(delta_ce) AS delta_ce_together,
        avg(dead) AS dead,
        avg(concept_f1) AS concept_f1,
        avg(source_precision) AS source_precision,
        avg(source_recall) AS source_recall
    FROM compared_run
    GROUP BY case_study, group_name
)
JOIN (
    SELECT
        case_study,
        group_name,
        avg(replacement_score) AS replacement_score,
        avg(completeness_score) AS completeness_score,
        avg(edge_correlation) AS edge_correlation,
        avg(effect_correlation) AS effect_correlation,
        avg(through) AS through,
        avg(around) AS around
    FROM compared_prompt
    GROUP BY case_study, group_name
) USING (case_study, group_name)
ORDER BY case_study, group_name

-- name: concept
-- For each concept and run, F1 of the best feature of all layers. Neurons and other model bases count as runs.
SELECT run, concept, found_layer, feature, precision, recall, f1, n_positive
FROM concept_score
JOIN run USING (run)
WHERE layer = -1
ORDER BY kind DESC, site_in, act, width, k, run, concept

-- name: concept_mean
-- How well each run detects concepts: mean and median F1 of the best feature of each concept.
SELECT
    run,
    count(*) AS concepts,
    avg(f1) AS mean_f1,
    median(f1) AS median_f1,
    count_if(f1 >= 0.8) AS found_at_0_8,
    count_if(f1 >= 0.5) AS found_at_0_5
FROM concept_score
JOIN run USING (run)
WHERE layer = -1
GROUP BY run
ORDER BY mean_f1 DESC, run

-- name: labelled_features
-- Features of a run whose labels tell best where they fire, up to 30 in all layers together, with what they promote most.
SELECT
    best.layer,
    best.feature,
    best.label,
    best.f1,
    best.f1_low,
    best.f1_high,
    feature.density,
    (
        SELECT string_agg(token, ' ' ORDER BY rank)
        FROM logit
        WHERE logit.run = best.run AND logit.layer = best.layer AND logit.feature = best.feature AND sign = 1 AND rank < 3
    ) AS promotes
FROM labels($run, NULL) AS best
LEFT JOIN feature
    ON feature.run = best.run AND feature.layer = best.layer AND feature.feature = best.feature
WHERE best.kind <> 'none'
QUALIFY row_number() OVER (PARTITION BY best.layer ORDER BY best.f1 DESC NULLS LAST, best.feature)
    <= greatest(1, coalesce(30 // nullif((SELECT count(DISTINCT layer) FROM labels($run, NULL)), 0), 1))
ORDER BY best.layer, best.f1 DESC, best.feature

-- name: graph_edges
-- Strongest edges of the pruned graph, at most $edges. Strength is the effect divided by the largest effect on the target.
WITH compared AS (
    SELECT *, abs(effect) / nullif(max(abs(effect)) OVER (PARTITION BY target_node), 0) AS strength
    FROM circuit_edges($trace)
)

SELECT source_node, target_node, effect, effect_frozen, effect_free, strength
FROM compared
ORDER BY strength DESC NULLS LAST, target_node, source_node
LIMIT $edges

-- name: graph_labels
-- The 30 most influential features of the pruned graph that have a label, with scores of the label.
SELECT nodes.label AS feature, best.label, best.f1, best.precision, best.recall, nodes.influence, nodes.cumulative
FROM circuit_nodes($trace) AS nodes
JOIN labels($run, NULL) AS best
    ON best.run = nodes.run AND best.layer = nodes.layer AND best.feature = nodes.feature AND best.kind <> 'none'
WHERE NOT nodes.is_root
ORDER BY nodes.influence DESC, nodes.node
LIMIT 30

-- name: graph_tokens
-- Tokens whose logits each feature of the graph raises (sign 1) or lowers (sign -1) most by direct logit attribution.
SELECT DISTINCT layer, feature, sign, rank, logit.token, effect
FROM logit
JOIN (
    SELECT DISTINCT layer, feature
    FROM circuit_nodes($trace)
    WHERE kind = 'feature'
) USING (layer, feature)
WHERE run = $run AND rank < 6
ORDER BY layer, feature, sign DESC, rank

-- name: graph_examples
-- The three largest activations of each feature of the graph, with the tokens around them. The column here is the place of the activation in tokens, counted from 1.
WITH found AS (
    SELECT layer, feature, rank, activation, tokens, activations, position - window_start + 1 AS place
    FROM example
    JOIN (
        SELECT DISTINCT layer, feature
        FROM circuit_nodes($trace)
        WHERE kind = 'feature'
    ) USING (layer, feature)
    WHERE run = $run AND band = 0 AND rank < 3
)

SELECT
    layer,
    feature,
    rank,
    activation,
    tokens[greatest(1, place - 14):place + 5] AS tokens,
    list_transform(activations[greatest(1, place - 14):place + 5], lambda x: round(x::DOUBLE, 2)) AS activations,
    least(place, 15)::INTEGER AS here
FROM found
ORDER BY layer, feature, rank

-- name: effects
-- Effects of at most $edges edges from features, as predicted by the graph and as measured by ablating the source.
SELECT source, target, effect, effect_frozen, effect_free
FROM circuit_edges($trace)
JOIN node ON node.trace = $trace AND node.node = source_node
WHERE node.kind = 'feature' AND effect_frozen IS NOT NULL
ORDER BY abs(effect) DESC, source_node, target_node
LIMIT $edges

-- name: interventions
-- Effects of feature edits on the target, once with everything else frozen and once with nothing frozen.
WITH changed AS (
    SELECT
        intervention,
        root,
        any_value(kind) AS kind,
        any_value(label) AS label,
        any_value(len(features)) AS features,
        any_value(strength) AS strength,
        any_value(before) AS before,
        max(after) FILTER (frozen) AS frozen,
        max(after) FILTER (NOT frozen) AS free
    FROM intervention
    WHERE trace = $trace
    GROUP BY intervention, root
)

SELECT
    changed.kind,
    if(
        source.node IS NULL,
        changed.label,
        node_label(source.kind, source.layer, source.feature, source.head, source.token, source.position)
    ) AS changed,
    changed.features,
    changed.strength,
    node_label(node.kind, node.layer, node.feature, node.head, node.token, node.position) AS target,
    changed.before,
    changed.frozen,
    changed.free
FROM changed
JOIN node ON node.trace = $trace AND node.node = changed.root
LEFT JOIN node AS source ON source.trace = $trace AND changed.label = concat('node ', source.node)
WHERE changed.root = (SELECT min(root) FROM changed)
ORDER BY abs(coalesce(changed.frozen, changed.free) - changed.before) DESC, changed.intervention
LIMIT 12

-- name: cases
-- Number of claims of each case study, and how many of them hold.
SELECT case_study, count(*) AS claims, count_if(holds) AS hold, count_if(NOT holds) AS fail
FROM claim
GROUP BY case_study
ORDER BY case_study

-- name: claims_of_case
-- Claims of one case study. A claim holds if its confidence interval lies inside the bound.
SELECT claim, statement, value, low, high, relation, bound, holds, n, of, published
FROM claim
WHERE case_study = $case

-- name: case_labels
-- Labels of the features that a case study names, with scores of each label.
SELECT layer, feature, label, f1, precision, recall
FROM labels($run, NULL)
WHERE concat(layer, '/', feature) IN $features AND kind <> 'none'
ORDER BY layer, feature

-- name: behaviours
-- Behaviours that the study measures outside of its case studies.
SELECT DISTINCT behaviour
FROM faithfulness
WHERE behaviour NOT IN (SELECT case_study FROM claim)
ORDER BY behaviour

-- name: faithfulness
-- Share of a behaviour that the top k components of a basis recover alone, and share that remains without them.
SELECT basis, ablation, ranking, n_kept, n_components, n_prompts, faithfulness, remaining
FROM faithfulness
WHERE behaviour = $behaviour
ORDER BY ablation, ranking, basis, n_kept

-- name: common_nodes
-- Nodes that the attribution graphs of a behaviour's prompts have in common, per template, with labels of features.
SELECT
    nodes.template, nodes.node, nodes.text, nodes.target, nodes.kind, nodes.run, nodes.layer, nodes.feature, nodes.role,
    nodes.token, nodes.n_prompts, nodes.share, nodes.is_common, nodes.influence, nodes.activation,
    best.label AS feature_label, best.f1 AS label_f1
FROM aggregate_node AS nodes
LEFT JOIN labels((SELECT min(run) FROM aggregate_node WHERE behaviour = $behaviour), NULL) AS best
    ON best.run = nodes.run AND best.layer = nodes.layer AND best.feature = nodes.feature AND best.kind <> 'none'
WHERE nodes.behaviour = $behaviour AND nodes.is_common
ORDER BY nodes.template, nodes.influence DESC, nodes.node

-- name: common_edges
-- Edges that the attribution graphs of a behaviour's prompts have in common, per template. The strongest come first.
SELECT template, source, target, is_common, share, effect, effect_deviation, effect_low, effect_high
FROM aggregate_edge
WHERE behaviour = $behaviour AND is_common
ORDER BY template, abs(effect) DESC, source, target

-- name: common_shares
-- Share of what all features add to a behaviour that sets of features recover alone, and that remains without them, on testing prompts.
WITH mean AS (
    SELECT condition, avg(value) AS value, count(*) AS n_prompts
    FROM outcome
    WHERE case_study = $behaviour AND half = 'testing' AND value IS NOT NULL
    GROUP BY condition
)

SELECT
    features.name AS features,
    untouched.n_prompts,
    untouched.value AS untouched,
    ablated.value AS ablated,
    (alone.value - ablated.value) / nullif(untouched.value - ablated.value, 0) AS recovered,
    (without.value - ablated.value) / nullif(untouched.value - ablated.value, 0) AS remaining
FROM (VALUES (0, 'common circuit'), (1, 'random features'), (2, 'all aggregated features')) AS features (number, name)
JOIN mean AS alone ON alone.condition = concat(features.name, ' alone')
JOIN mean AS without ON without.condition = concat('without ', features.name)
JOIN mean AS untouched ON untouched.condition = 'untouched'
JOIN mean AS ablated ON ablated.condition = 'features ablated'
ORDER BY features.number

-- name: components
-- The five components of each basis whose ablation, on average over prompts, changes a behaviour most.
SELECT behaviour, basis, ablation, layer, component, avg(effect) AS effect, avg(kl) AS kl, count(*) AS n_prompts
FROM causal
WHERE effect IS NOT NULL AND position IS NULL
GROUP BY behaviour, basis, ablation, layer, component
QUALIFY row_number() OVER (
    PARTITION BY behaviour, basis, ablation
    ORDER BY abs(avg(effect)) DESC, layer, component
) <= 5
ORDER BY behaviour, ablation, basis, abs(avg(effect)) DESC, layer, component

-- name: blind_mean
-- How well the weights alone predict the tokens that features fire on, as means over features.
SELECT
    run,
    layer,
    protocol,
    count(*) AS features,
    avg(precision) AS precision,
    avg(recall) AS recall,
    avg(f1) AS f1,
    median(f1) AS median_f1
FROM blind
GROUP BY run, layer, protocol
ORDER BY run, layer, protocol
