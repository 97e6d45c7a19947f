from circuitloom.core.script import job

with job("language_model", snakemake):
    from pathlib import Path

    from circuitloom.core.tables import read_table
    from circuitloom.language_model.pretraining_plot import plot_pretraining

    figures = read_table(snakemake.input.figures).to_pylist()
    plot_pretraining(
        read_table(Path(snakemake.input.model) / "pretraining.parquet"),
        {row["figure"]: row["value"] for row in figures},
        snakemake.params.step_tokens,
        Path(snakemake.output.plot),
    )
