"""Builds the corpus: tokenizer, packed training and held-out tokens, and tables of documents, tokens and concepts."""

# only generated text depends on the seed
CORPUS_SEED = STUDY.seed if STUDY.corpus.generated else 0
CORPUS_FILES = corpus_files()


rule build_corpus:
    input:
        possible_inputs(CORPUS_FILES),
    output:
        tokenizer=directory(LAYOUT.tokenizer),
        train=directory(LAYOUT.tokens("train")),
        validation=directory(LAYOUT.tokens("validation")),
        document=LAYOUT.corpus_table("document"),
        token=LAYOUT.corpus_table("token"),
        notice=LAYOUT.corpus_table("notice"),
    log:
        LAYOUT.log("build_corpus"),
    benchmark:
        LAYOUT.benchmark("build_corpus")
    threads: split_cores(1)
    resources:
        **needs("corpus"),
    params:
        # the text does not depend on which concepts are chosen
        config={k: v for k, v in section("corpus").items() if k != "concepts"},
        seed=CORPUS_SEED,
        tokenizer=corpus_tokenizer(),
        code=code("corpus_build"),
        files=file_states(CORPUS_FILES),
    script:
        "../../scripts/corpus_build.py"


rule annotate_concepts:
    input:
        document=rules.build_corpus.output.document,
        tokenizer=rules.build_corpus.output.tokenizer,
        validation=rules.build_corpus.output.validation,
    output:
        concept=LAYOUT.corpus_table("concept"),
    log:
        LAYOUT.log("annotate_concepts"),
    benchmark:
        LAYOUT.benchmark("annotate_concepts")
    resources:
        **needs("corpus"),
    params:
        config=section("corpus"),
        seed=CORPUS_SEED,
        code=code("corpus_annotate"),
    script:
        "../../scripts/corpus_annotate.py"


TARGETS["corpus"] = [*rules.build_corpus.output, *rules.annotate_concepts.output]
