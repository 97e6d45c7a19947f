SELECT feature.feature, density, n_tokens, max_activation, mean_activation, encoder_norm, bias, best.concept, best.f1
FROM feature
LEFT JOIN (
    SELECT feature, arg_max(concept, f1) AS concept, max(f1) AS f1
    FROM feature_concept
    WHERE run = {run} AND layer = {layer} AND f1 > 0
    GROUP BY feature
) AS best USING (feature)
WHERE run = {run} AND layer = {layer}
