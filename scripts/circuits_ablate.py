from circuitloom.core.script import job

with job("circuits", snakemake):
    from circuitloom.ablation.behaviour import behaviour_tables
    from circuitloom.config.circuits import Behaviour
    from circuitloom.core.tables import TABLES, write_table
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.dictionaries.cross_layer import load_layers
    from circuitloom.language_model.model import load_model

    source, params, output = snakemake.input, snakemake.params, snakemake.output
    model = load_model(source.model, params.dtype)
    folders, n = list(source.dictionaries), len(params.layers)
    runs = {
        run: load_layers(folders[number * n : (number + 1) * n], model.device, params.dtype)
        for number, run in enumerate(params.runs)
    }
    behaviour = Behaviour.model_validate(params.behaviour)
    tokenizer = load_tokenizer(source.tokenizer)
    rows = behaviour_tables(params.name, model, tokenizer, runs, behaviour, params.context)
    for name, path in output.items():
        write_table({table.name: table for table in TABLES}[name], rows[name], path)
