from circuitloom.core.script import job

with job("cases", snakemake):
    from pathlib import Path

    import pyarrow as pa

    from circuitloom.cases.case_report import write_report
    from circuitloom.cases.context import open_context
    from circuitloom.cases.planted.study import study_planted
    from circuitloom.config.cases import PlantedCase
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import read_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.evaluation.held_out import load_held_out

    source, params = snakemake.input, snakemake.params
    context = open_context(
        source.model, source.tokenizer, source.dictionaries, params.runs, params.context, params.dtype
    )
    held_out = load_held_out(open_tokens(source.tokens), Evaluation.model_validate(params.evaluation))
    concepts, matched = read_table(source.concepts), pa.concat_tables(map(read_table, source.matched))
    case = PlantedCase.model_validate(params.case)
    report = study_planted(snakemake.wildcards.case, context, held_out, concepts, matched, case)
    write_report(report, Path(snakemake.output.result).parent)
