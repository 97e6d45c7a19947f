SELECT source_layer AS layer, source_feature AS feature, via, weight, mean_effect, mean_effect_when_active
FROM connection
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY abs(mean_effect_when_active) DESC NULLS LAST, abs(weight) DESC
LIMIT 15
