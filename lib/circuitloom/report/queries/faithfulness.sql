-- Share of the behaviour that the top k components of a basis recover alone, and that is left without them.
SELECT basis, ablation, ranking, n_kept, n_components, n_prompts, faithfulness, remaining
FROM faithfulness
WHERE behaviour = {behaviour}
ORDER BY ablation, ranking, basis, n_kept
