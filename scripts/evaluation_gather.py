from circuitloom.job import job

with job("evaluation", snakemake.threads, snakemake.log[0]):
    from circuitloom.config.dictionaries import Run
    from circuitloom.evaluation.gathering import basis_rows, gather, gather_concepts, run_rows
    from circuitloom.tables import HISTOGRAM, METRIC, RUN, write_table

    source, params, output = snakemake.input, snakemake.params, snakemake.output
    gather(METRIC, source.metric, output.metric)
    gather(HISTOGRAM, source.histogram, output.histogram)
    gather_concepts(source.concept_score, output.concept_score)
    runs = [Run.model_validate(run) for run in params.runs]
    bases = basis_rows(**params.bases) if params.bases else []
    write_table(RUN, [*run_rows(runs), *bases], output.run)
