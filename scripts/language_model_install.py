from circuitloom.core.script import job

with job("language_model", snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from circuitloom.config.language_model import LanguageModel
    from circuitloom.language_model.installation import install

    install(
        TypeAdapter(LanguageModel).validate_python(snakemake.params.config),
        Path(snakemake.input.tokenizer),
        Path(snakemake.output.model),
    )
