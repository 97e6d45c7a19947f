SELECT layer, feature, via, weight, mean_effect, mean_effect_when_active
FROM connection
WHERE run = {run} AND source_layer = {layer} AND source_feature = {feature}
ORDER BY abs(mean_effect_when_active) DESC NULLS LAST, abs(weight) DESC
LIMIT 15
