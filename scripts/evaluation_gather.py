from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.config.dictionaries import Run
    from circuitloom.core.tables import (
        CONCEPT_SCORE,
        DENSITY_HISTOGRAM,
        FEATURE_CONCEPT,
        METRIC,
        RUN,
        write_table,
    )
    from circuitloom.evaluation.summary import basis_rows, concatenate_tables, concept_scores, run_rows

    source, params, output = snakemake.input, snakemake.params, snakemake.output
    concatenate_tables(METRIC, source.metric, output.metric)
    concatenate_tables(DENSITY_HISTOGRAM, source.histogram, output.histogram)
    features = concatenate_tables(FEATURE_CONCEPT, source.feature_concept, output.feature_concept)
    write_table(CONCEPT_SCORE, concept_scores(features), output.concept_score)
    runs = [Run.model_validate(run) for run in params.runs]
    write_table(RUN, [*run_rows(runs), *basis_rows(**params.bases)], output.run)
