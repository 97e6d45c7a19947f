"""Text to packed tokens, with its documents, held-out tokens and concepts as tables."""

# only generated text depends on the seed
CORPUS_SEED = STUDY.seed if STUDY.corpus.source == "chronicle" else 0


rule build_corpus:
    input:
        corpus_files(),
    output:
        tokenizer=directory(f"{RESULTS}/corpus/tokenizer"),
        train=directory(f"{RESULTS}/corpus/train.zarr"),
        validation=directory(f"{RESULTS}/corpus/validation.zarr"),
        document=f"{RESULTS}/corpus/document.parquet",
        token=f"{RESULTS}/corpus/token.parquet",
    log:
        f"{RESULTS}/logs/build_corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_corpus.tsv"
    threads: split_cores(1)
    resources:
        **needs("corpus"),
    params:
        # the choice of concepts touches no text
        config={k: v for k, v in section("corpus").items() if k != "concepts"},
        seed=CORPUS_SEED,
        tokenizer=corpus_tokenizer(),
        code=code("corpus_build"),
    script:
        "../../scripts/corpus_build.py"


rule label_concepts:
    input:
        document=rules.build_corpus.output.document,
        tokenizer=rules.build_corpus.output.tokenizer,
        validation=rules.build_corpus.output.validation,
    output:
        concept=f"{RESULTS}/corpus/concept.parquet",
    log:
        f"{RESULTS}/logs/label_concepts.log",
    benchmark:
        f"{RESULTS}/benchmarks/label_concepts.tsv"
    resources:
        **needs("corpus"),
    params:
        config=section("corpus"),
        seed=CORPUS_SEED,
        code=code("corpus_label"),
    script:
        "../../scripts/corpus_label.py"


TARGETS["corpus"] = [*rules.build_corpus.output, *rules.label_concepts.output]
