-- Components whose ablation changes each behaviour most, mean over its prompts; the five first of each basis.
SELECT behaviour, basis, ablation, layer, component, avg(effect) AS effect, avg(kl) AS kl, count(*) AS n_prompts
FROM causal
WHERE effect IS NOT NULL AND position IS NULL
GROUP BY behaviour, basis, ablation, layer, component
QUALIFY row_number() OVER (
    PARTITION BY behaviour, basis, ablation
    ORDER BY abs(avg(effect)) DESC, layer, component
) <= 5
ORDER BY behaviour, ablation, basis, abs(avg(effect)) DESC, layer, component
