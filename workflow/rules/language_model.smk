"""Pretrains the language model or copies it from a folder or the hub, and measures its loss on held-out tokens."""

if STUDY.language_model.source == "pretrain":

    rule pretrain_model:
        input:
            train=LAYOUT.tokens("train"),
            tokenizer=LAYOUT.tokenizer,
        output:
            model=directory(LAYOUT.model),
        log:
            LAYOUT.log("pretrain_model"),
        benchmark:
            LAYOUT.benchmark("pretrain_model")
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
            model=LAYOUT.model,
            figures=LAYOUT.model_quality,
        output:
            plot=report(
                LAYOUT.pretraining_figure,
                caption="../report/pretraining.rst",
                category="Language model",
            ),
        log:
            LAYOUT.log("plot_pretraining"),
        benchmark:
            LAYOUT.benchmark("plot_pretraining")
        resources:
            **needs("language_model"),
        params:
            step_tokens=STUDY.language_model.batch * STUDY.corpus.context,
            code=code("language_model_plot"),
        script:
            "../../scripts/language_model_plot.py"

else:
    MODEL_FILES = model_files() if STUDY.language_model.source == "path" else []

    rule install_model:
        input:
            possible_inputs(MODEL_FILES),
            tokenizer=LAYOUT.tokenizer,
        output:
            model=directory(LAYOUT.model),
        log:
            LAYOUT.log("install_model"),
        benchmark:
            LAYOUT.benchmark("install_model")
        resources:
            **needs("language_model"),
        params:
            config=section("language_model"),
            code=code("language_model_install"),
            files=file_states(MODEL_FILES),
        script:
            "../../scripts/language_model_install.py"


rule measure_model:
    input:
        model=LAYOUT.model,
        validation=LAYOUT.tokens("validation"),
        document=LAYOUT.corpus_table("document"),
        tokenizer=LAYOUT.tokenizer,
    output:
        table=LAYOUT.model_quality,
    log:
        LAYOUT.log("measure_model"),
    benchmark:
        LAYOUT.benchmark("measure_model")
    # a job that wanted all cores would wait for the last of the others
    threads: split_cores(2)
    resources:
        **needs("language_model", gpu=True),
    params:
        dtype=MODEL_DTYPE,
        seed=STUDY.seed,
        loss_tokens=STUDY.language_model.loss_tokens,
        source=STUDY.corpus.source,
        code=code("language_model_measure"),
    script:
        "../../scripts/language_model_measure.py"


TARGETS["language_model"] = [LAYOUT.model, *rules.measure_model.output] + (
    [*rules.plot_pretraining.output]
    if STUDY.language_model.source == "pretrain"
    else []
)
