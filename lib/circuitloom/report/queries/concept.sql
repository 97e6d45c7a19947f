-- F1 of the best feature of each concept, over all layers, in each run and in the model's own bases.
SELECT run, concept, found_layer, feature, precision, recall, f1, n_positive
FROM concept_score
JOIN run USING (run)
WHERE layer = -1
ORDER BY kind DESC, site_in, act, width, k, run, concept
