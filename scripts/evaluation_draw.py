from circuitloom.core.script import job

with job("evaluation", snakemake):
    from circuitloom.core.tables import PARETO, read_table, write_table
    from circuitloom.evaluation.pareto import draw_pareto, pareto_table

    table = pareto_table(read_table(snakemake.input.metric), read_table(snakemake.input.run))
    write_table(PARETO, table, snakemake.output.table)
    draw_pareto(table, snakemake.output.figure)
