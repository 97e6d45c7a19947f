-- Key figures of the study, each with its unit and what it is of.
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
            'nats a token',
            concat(
                run,
                if(layer = -1, ', all layers replaced', concat(', layer ', layer)),
                ', L0 ',
                round(l0, 1)
            )
        FROM metric
        JOIN run USING (run)
        WHERE kind = 'transcoder'
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
        WHERE layer = -1 AND kind = 'transcoder'
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
