"""One job a sweep and layer, trained or imported, its outputs the folders of the sweep's runs."""

for sweep, runs in STUDY.sweeps.items():
    folders = dictionary_folders([run.name for run in runs], ["{layer}"])

    if runs[0].imported:

        rule:
            name:
                f"import_{sweep}"
            input:
                files=[run.files for run in runs],
                model=f"{RESULTS}/model",
            output:
                [directory(folder) for folder in folders],
            log:
                f"{RESULTS}/logs/import_{sweep}_layer{{layer}}.log",
            benchmark:
                f"{RESULTS}/benchmarks/import_{sweep}_layer{{layer}}.tsv"
            wildcard_constraints:
                layer=r"\d+",
            threads: 1
            resources:
                **needs("dictionaries"),
            params:
                # how others are trained is nothing to what is imported
                runs=[
                    run.model_dump(
                        mode="json", include={"kind", "name", "act", "width", "files"}
                    )
                    for run in runs
                ],
                dtype=MODEL_DTYPE,
                code=code("dictionaries_import"),
            script:
                "../../scripts/dictionaries_import.py"

    else:

        rule:
            name:
                f"train_{sweep}"
            input:
                activations=[
                    activation_folder(site, "{layer}") for site in stored_sites(runs)
                ],
                model=f"{RESULTS}/model",
            output:
                [directory(folder) for folder in folders],
            log:
                f"{RESULTS}/logs/train_{sweep}_layer{{layer}}.log",
            benchmark:
                f"{RESULTS}/benchmarks/train_{sweep}_layer{{layer}}.tsv"
            wildcard_constraints:
                layer=r"\d+",
            threads: split_cores(len(STUDY.layers) * len(STUDY.sweeps), runs[0].processes)
            resources:
                **needs("dictionaries", gpu=True),
            params:
                runs=[run.model_dump(mode="json") for run in runs],
                dtype=MODEL_DTYPE,
                code=code("dictionaries_train"),
            script:
                "../../scripts/dictionaries_train.py"


TARGETS["dictionaries"] = dictionary_folders(STUDY.runs, STUDY.layers)
