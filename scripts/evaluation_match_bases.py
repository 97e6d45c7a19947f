from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.config.evaluation import Evaluation
    from circuitloom.core.tables import FEATURE_CONCEPT, read_table, write_table
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.evaluation.concept_matching import match_bases
    from circuitloom.evaluation.concepts import concept_annotations
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.language_model.model import load_model

    source, params = snakemake.input, snakemake.params
    config = Evaluation.model_validate(params.config)
    held_out = load_held_out(open_tokens(source.tokens), config)
    annotations = concept_annotations(read_table(source.concepts), held_out)
    rows = match_bases(load_model(source.model, params.dtype), params.layers, held_out, annotations, config)
    write_table(FEATURE_CONCEPT, list(rows), snakemake.output[0])
