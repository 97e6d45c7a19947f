from circuitloom.core.script import job

with job("cases", snakemake):
    from pathlib import Path

    from circuitloom.cases.case_report import write_report
    from circuitloom.cases.context import open_context
    from circuitloom.cases.feature.study import load_text, study_feature
    from circuitloom.config.cases import FeatureCase
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import read_table
    from circuitloom.corpus.tokens import open_tokens

    source, params = snakemake.input, snakemake.params
    context = open_context(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    evaluation = Evaluation.model_validate(params.evaluation)
    case = FeatureCase.model_validate(params.case)
    held_out = load_text(open_tokens(source.tokens), evaluation, case)
    concepts = read_table(source.concepts)
    report = study_feature(snakemake.wildcards.case, context, held_out, concepts, case, evaluation)
    write_report(report, Path(snakemake.output.result).parent)
