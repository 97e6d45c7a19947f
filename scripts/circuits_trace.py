from circuitloom.core.script import job

with job("circuits", snakemake):
    from circuitloom.attribution.export import write_graph
    from circuitloom.attribution.trace_tables import TraceRows
    from circuitloom.attribution.tracer import Tracer
    from circuitloom.config.circuits import Circuits, Prompt
    from circuitloom.core.tables import write_table
    from circuitloom.corpus.prompt_text import print_notes
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.dictionaries.cross_layer import load_layers
    from circuitloom.language_model.model import load_model

    source, params, output = snakemake.input, snakemake.params, snakemake.output
    config = Circuits.model_validate(params.config)
    model = load_model(source.model, config.dtype)
    dictionaries = load_layers(source.dictionaries, model.device, mapped=True)
    tracer = Tracer(model, load_tokenizer(source.tokenizer), params.run, dictionaries, params.context)
    for number, (name, prompt) in enumerate(params.prompts.items()):
        trace = tracer.trace(Prompt.model_validate(prompt), config)
        print_notes(name, trace.notes)
        rows = TraceRows(trace, name, tracer.strings)
        for table, (schema, contents) in rows.tables().items():
            write_table(schema, contents, output[table][number])
        write_graph(trace, rows.name, rows.tokens, output.graph[number])
