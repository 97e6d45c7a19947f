-- The features of any run and layer that say best that a token takes part in a concept, by F1 on held-out documents.
-- example: SELECT run, layer, feature, threshold, precision, recall, f1 FROM features_of_concept({concept}) LIMIT 5
CREATE OR REPLACE MACRO features_of_concept(of_concept) AS TABLE
SELECT
    scored.run,
    scored.layer,
    scored.feature,
    scored.sign,
    scored.threshold,
    scored.precision,
    scored.recall,
    scored.f1,
    feature.density,
    feature.max_activation
FROM feature_concept AS scored
LEFT JOIN feature
    ON feature.run = scored.run AND feature.layer = scored.layer AND feature.feature = scored.feature
WHERE scored.concept = of_concept
ORDER BY scored.f1 DESC NULLS LAST, scored.run, scored.layer, scored.feature;
