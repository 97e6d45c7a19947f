-- name: scores
-- Which dictionary explains each layer best, and what does it cost the model?
SELECT run, layer, round(l0, 1) AS l0, round(fvu, 4) AS fvu, round(ce_recovered_zero, 4) AS ce_recovered, round(delta_ce, 4) AS delta_ce
FROM metric
WHERE layer >= 0
QUALIFY row_number() OVER (PARTITION BY layer ORDER BY fvu) <= 2
ORDER BY layer, fvu

-- name: dead
-- How many features of each run are dead, rare or dense?
SELECT
    run,
    count(*) AS features,
    round(avg((NOT alive)::INT), 3) AS dead,
    round(avg((alive AND density < 1e-4)::INT), 3) AS rarer_than_1_in_10000,
    round(avg((density > 0.1)::INT), 3) AS on_over_10_percent
FROM feature
GROUP BY run
ORDER BY run

-- name: dense
-- What do the densest features of a run fire on?
SELECT feature.layer, feature.feature, round(density, 3) AS density, marked_text(tokens, position - window_start) AS largest
FROM feature
JOIN example USING (run, layer, feature)
WHERE feature.run = $run AND band = 0 AND rank = 0
ORDER BY density DESC
LIMIT 5

-- name: top
-- What makes one feature fire most?
SELECT rank, round(activation, 2) AS activation, text
FROM top_examples($run, $layer, $feature)
LIMIT 8

-- name: card
-- What is known about one feature?
FROM feature_card($run, $layer, $feature)

-- name: bands
-- Does the feature mean the same where it fires weakly?
SELECT band, round(band_low, 2) AS low, round(band_high, 2) AS high, round(band_share, 3) AS share, marked_text(tokens, position - window_start) AS text
FROM example
WHERE run = $run AND layer = $layer AND feature = $feature AND band > 0 AND rank < 2
ORDER BY band DESC, rank

-- name: together
-- Which features of the same run fire on the same tokens?
SELECT layer, feature, n_both, round(overlap, 3) AS overlap, round(share_of_this, 3) AS share_of_this, round(lift, 1) AS lift
FROM coactivation($run, $layer, $feature)
LIMIT 8

-- name: similar
-- Which feature of each other run, and which neuron, has the most similar activations?
SELECT run, layer, feature, round(cosine, 3) AS cosine, n_both
FROM similar_features($run, $layer, $feature)
QUALIFY row_number() OVER (PARTITION BY run ORDER BY cosine DESC) = 1
ORDER BY cosine DESC
LIMIT 10

-- name: word
-- Which features detect a word or phrase?
SELECT run, layer, feature, n_hits, round(precision, 3) AS precision, round(recall, 3) AS recall, round(f1, 3) AS f1
FROM features_on($pattern)
LIMIT 8

-- name: token
-- Which features are active on one token, and how strongly?
SELECT layer, feature, round(activation.activation, 3) AS activation, token.token, round(density, 4) AS density
FROM activation
JOIN token USING (sequence, position)
JOIN feature USING (run, layer, feature)
WHERE run = $run AND layer = $layer AND sequence = 3 AND position = 20
ORDER BY activation.activation * decoder_norm DESC

-- name: bases
-- Do dictionaries detect concepts better than neurons and residual directions?
SELECT run, count(*) AS concepts, round(avg(coalesce(f1, 0)), 3) AS mean_f1, count(*) FILTER (f1 >= 0.8) AS f1_over_80
FROM concept_score
WHERE layer = -1
GROUP BY run
ORDER BY mean_f1 DESC

-- name: concept
-- Which features detect a concept?
SELECT run, layer, feature, round(precision, 3) AS precision, round(recall, 3) AS recall, round(f1, 3) AS f1, round(density, 4) AS density
FROM features_of_concept($concept)
LIMIT 8

-- name: missed
-- Which concepts does no feature of any dictionary detect well?
SELECT concept, round(max(f1), 3) AS best_f1, arg_max(run, f1) AS run, arg_max(found_layer, f1) AS layer, arg_max(feature, f1) AS feature
FROM concept_score
WHERE layer = -1 AND run NOT IN ('neurons', 'residual')
GROUP BY concept
ORDER BY best_f1
LIMIT 8

-- name: promoters
-- Which features raise a token's logit most, and when do they fire?
SELECT logit.layer, logit.feature, round(effect, 3) AS effect, marked_text(tokens, position - window_start) AS largest
FROM logit
JOIN example USING (run, layer, feature)
JOIN feature USING (run, layer, feature)
WHERE run = $run AND token = $token AND sign = 1 AND logit.rank < 3 AND band = 0 AND example.rank = 0
ORDER BY logit.effect / decoder_norm DESC
LIMIT 6

-- name: predictive
-- Which features fire just before one of the tokens that they raise most?
WITH next AS (
    SELECT sequence, position - 1 AS position, token_id FROM token
),

raised AS (
    SELECT layer, feature, list(token_id) AS token_ids, list(token ORDER BY rank)[:3] AS tokens
    FROM logit
    WHERE run = $run AND sign = 1
    GROUP BY ALL
)

SELECT layer, feature, count(*) AS fires, round(avg(list_contains(token_ids, token_id)::INT), 3) AS followed_by_one, any_value(tokens) AS raises
FROM activation
JOIN next USING (sequence, position)
JOIN raised USING (layer, feature)
WHERE run = $run
GROUP BY layer, feature
HAVING count(*) >= 50
ORDER BY followed_by_one DESC, fires DESC
LIMIT 8

-- name: positions
-- Which features depend on the position in the sequence, not on the text?
SELECT layer, feature, count(*) AS fires, mode(position) AS position, round(avg((position <= 3)::INT), 3) AS on_the_first_three
FROM activation
WHERE run = $run
GROUP BY layer, feature
HAVING count(*) >= 50
ORDER BY on_the_first_three DESC, fires DESC
LIMIT 6

-- name: crowded
-- On which tokens do most features fire?
SELECT any_value(token) AS token, count(*) AS times, round(avg(n_features), 1) AS features
FROM code
JOIN token USING (sequence, position)
WHERE run = 'neurons' AND layer = $layer
GROUP BY token_id
HAVING count(*) >= 20
ORDER BY features DESC, token
LIMIT 6

-- name: compare
-- In which scores do two runs differ?
SELECT layer, metric, round(one, 4) AS one, round(other, 4) AS other, round(difference, 4) AS difference
FROM compare_runs($run, $other_run)
WHERE metric IN ('fvu', 'l0', 'ce_recovered_zero', 'alive')

-- name: twins
-- Which features of one layer share their top examples, as in feature splitting?
SELECT one.layer, one.feature AS one, other.feature AS other, count(*) AS shared_of_20, any_value(one.tokens[one.position - one.window_start + 1]) AS token
FROM example AS one
JOIN example AS other USING (run, layer, sequence, position)
WHERE run = $run AND one.band = 0 AND other.band = 0 AND one.feature < other.feature
GROUP BY ALL
ORDER BY shared_of_20 DESC, one.layer, one.feature, other.feature
LIMIT 6

-- name: training
-- Was training long enough: how much did FVU improve over the last tenth of the steps?
SELECT
    run,
    layer,
    round(avg(fvu) FILTER (share BETWEEN 0.8 AND 0.9), 4) AS fvu_before,
    round(avg(fvu) FILTER (share > 0.9), 4) AS fvu_at_the_end,
    round(avg(dead) FILTER (share > 0.9), 3) AS dead_at_the_end
FROM (SELECT *, step / max(step) OVER (PARTITION BY run, layer) AS share FROM history)
WHERE run IN ($run, $other_run)
GROUP BY run, layer
ORDER BY run, layer
