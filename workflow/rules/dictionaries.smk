"""Trains or imports dictionaries. There is one job for each sweep and layer, which handles all runs of the sweep. The job
of a sweep of cross-layer transcoders handles all layers."""

TRAINING_JOBS = sum(
    1 if runs[0].is_cross_layer else len(STUDY.layers) for runs in STUDY.sweeps.values()
)


for sweep, runs in STUDY.sweeps.items():
    layers = trained_layers(runs)
    folders = dictionary_folders([run.name for run in runs], layers)

    if runs[0].imported:

        # files that are tested at their hooks need held-out text
        tested = any(run.name in STUDY.published for run in runs)

        rule:
            name:
                f"import_{sweep}"
            input:
                **({"validation": LAYOUT.tokens("validation")} if tested else {}),
                files=lambda wildcards, runs=runs, layers=layers: possible_inputs(
                    imported_files(runs, layers_of_job(layers, wildcards))
                ),
                model=LAYOUT.model,
            output:
                [directory(folder) for folder in folders],
            log:
                LAYOUT.log(f"import_{sweep}{of_layer(layers)}"),
            benchmark:
                LAYOUT.benchmark(f"import_{sweep}{of_layer(layers)}")
            wildcard_constraints:
                layer=r"\d+",
            threads: 1
            resources:
                **needs("dictionaries"),
            params:
                # imported files do not depend on the training settings
                runs=[
                    run.model_dump(mode="json", include=set(IMPORT_KEYS))
                    for run in runs
                ],
                layers=lambda wildcards, layers=layers: layers_of_job(layers, wildcards),
                dtype=MODEL_DTYPE,
                files=lambda wildcards, runs=runs, layers=layers: file_states(
                    imported_files(runs, layers_of_job(layers, wildcards))
                ),
                commits=[
                    commit_of(run.files, run.revision, f"dictionaries.{sweep}.files")
                    for run in runs
                ],
                code=code("dictionaries_import"),
            script:
                "../../scripts/dictionaries_import.py"

    else:

        rule:
            name:
                f"train_{sweep}"
            input:
                activations=[
                    LAYOUT.activation_layer(site, layer)
                    for layer in layers
                    for site in stored_sites(runs)
                ],
                model=LAYOUT.model,
            output:
                [directory(folder) for folder in folders],
            log:
                LAYOUT.log(f"train_{sweep}{of_layer(layers)}"),
            benchmark:
                LAYOUT.benchmark(f"train_{sweep}{of_layer(layers)}")
            wildcard_constraints:
                layer=r"\d+",
            # later stages wait for it
            priority: 1
            threads: split_cores(TRAINING_JOBS, runs[0].processes)
            resources:
                **needs("dictionaries", gpu=True),
            params:
                runs=[run.model_dump(mode="json") for run in runs],
                layers=lambda wildcards, layers=layers: layers_of_job(layers, wildcards),
                outliers=section("activations")["outliers"],
                dtype=MODEL_DTYPE,
                code=code("dictionaries_train"),
            script:
                "../../scripts/dictionaries_train.py"


TARGETS["dictionaries"] = dictionary_folders(STUDY.runs, STUDY.layers)
