from circuitloom.core.script import job

with job("circuits", snakemake):
    from pathlib import Path

    from circuitloom.attribution.drawing import GraphDrawing, draw_graph
    from circuitloom.core.feature_labels import best_labels

    params, files = snakemake.params, [Path(file) for file in snakemake.input.labels]
    labels = {
        run: best_labels(file for file in files if file.parent.parent.name == run)
        for run in {file.parent.parent.name for file in files}
    }
    for path in map(Path, snakemake.output):
        draw_graph(GraphDrawing.read(path.parent, params.layers, labels), path)
