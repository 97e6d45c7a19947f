from circuitloom.core.script import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.case_report import write_report
    from circuitloom.cases.compare.study import open_truth, study_compare
    from circuitloom.cases.context import open_context
    from circuitloom.config.cases import CompareCase
    from circuitloom.config.circuits import Circuits
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import read_table

    source, params = snakemake.input, snakemake.params
    context = open_context(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    case, config = CompareCase.model_validate(params.case), Circuits.model_validate(params.circuits)
    truth = None
    if case.concepts:
        evaluation = Evaluation.model_validate(params.evaluation)
        truth = open_truth(source.tokens, source.concepts, source.matched, evaluation)
    name, metrics = snakemake.wildcards.case, read_table(source.metrics)
    report = study_compare(name, context, metrics, truth, case, config)
    write_report(report, Path(snakemake.output.result).parent)
