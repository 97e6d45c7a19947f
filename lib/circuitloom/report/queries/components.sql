-- Components whose ablation changes each behaviour most, mean over its prompts; the five first of each basis.
SELECT study, basis, ablation, layer, component, avg(effect) AS effect, avg(kl) AS kl, count(*) AS n_prompts
FROM causal
WHERE effect IS NOT NULL AND position IS NULL
GROUP BY study, basis, ablation, layer, component
QUALIFY row_number() OVER (
    PARTITION BY study, basis, ablation
    ORDER BY abs(avg(effect)) DESC, layer, component
) <= 5
ORDER BY study, ablation, basis, abs(avg(effect)) DESC, layer, component
