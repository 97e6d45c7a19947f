"""The model that is studied: pretrained here, or laid down from a folder or the hub; and how good it is."""

if STUDY.language_model.source == "pretrain":

    rule pretrain_model:
        input:
            train=f"{RESULTS}/corpus/train.zarr",
            tokenizer=f"{RESULTS}/corpus/tokenizer",
        output:
            model=directory(f"{RESULTS}/model"),
        log:
            f"{RESULTS}/logs/pretrain_model.log",
        benchmark:
            f"{RESULTS}/benchmarks/pretrain_model.tsv"
        threads: split_cores(1)
        resources:
            **needs("language_model", gpu=True),
        params:
            config=section("language_model"),
            seed=STUDY.seed,
            code=code("language_model_pretrain"),
        script:
            "../../scripts/language_model_pretrain.py"

    rule plot_pretraining:
        input:
            model=f"{RESULTS}/model",
            figures=f"{RESULTS}/language_model/language_model.parquet",
        output:
            plot=report(
                f"{RESULTS}/language_model/pretraining.png",
                caption="../report/pretraining.rst",
                category="Language model",
            ),
        log:
            f"{RESULTS}/logs/plot_pretraining.log",
        benchmark:
            f"{RESULTS}/benchmarks/plot_pretraining.tsv"
        resources:
            **needs("language_model"),
        params:
            step_tokens=STUDY.language_model.batch * STUDY.corpus.context,
            code=code("language_model_plot"),
        script:
            "../../scripts/language_model_plot.py"

else:

    rule install_model:
        input:
            model_files() if STUDY.language_model.source == "path" else [],
            tokenizer=f"{RESULTS}/corpus/tokenizer",
        output:
            model=directory(f"{RESULTS}/model"),
        log:
            f"{RESULTS}/logs/install_model.log",
        benchmark:
            f"{RESULTS}/benchmarks/install_model.tsv"
        resources:
            **needs("language_model"),
        params:
            config=section("language_model"),
            code=code("language_model_install"),
        script:
            "../../scripts/language_model_install.py"


rule measure_model:
    input:
        model=f"{RESULTS}/model",
        validation=f"{RESULTS}/corpus/validation.zarr",
        document=f"{RESULTS}/corpus/document.parquet",
        tokenizer=f"{RESULTS}/corpus/tokenizer",
    output:
        table=f"{RESULTS}/language_model/language_model.parquet",
    log:
        f"{RESULTS}/logs/measure_model.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_model.tsv"
    threads: split_cores(1)
    resources:
        **needs("language_model", gpu=True),
    params:
        dtype=MODEL_DTYPE,
        seed=STUDY.seed,
        code=code("language_model_measure"),
    script:
        "../../scripts/language_model_measure.py"


TARGETS["language_model"] = [f"{RESULTS}/model", *rules.measure_model.output] + (
    [*rules.plot_pretraining.output]
    if STUDY.language_model.source == "pretrain"
    else []
)
