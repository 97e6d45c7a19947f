"""What was found, as one page: made of the catalogue, the config, what case studies wrote, and times."""

CASE_RESULTS = [file for file in TARGETS["cases"] if Path(file).name == "result.md"]
CASE_PICTURES = [file for file in TARGETS["cases"] if file.endswith(".png")]


rule write_report:
    input:
        # views of the catalogue read these when they are asked
        TARGETS["features"],
        TARGETS["circuits"],
        TARGETS["cases"],
        TARGETS["evaluation"],
        TARGETS["language_model"],
        catalog=TARGETS["catalog"][0],
        model=f"{RESULTS}/model",
        tokens=[f"{RESULTS}/corpus/{part}.zarr" for part in ("train", "validation")],
        dictionaries=dictionary_folders(STUDY.runs, STUDY.layers),
        results=CASE_RESULTS,
        pictures=CASE_PICTURES,
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    resources:
        **needs("report"),
    params:
        config=STUDY.model_dump(mode="json", exclude={"resources"}),
        benchmarks=f"{RESULTS}/benchmarks",
        code=code("report_write"),
    script:
        "../../scripts/report_write.py"


TARGETS["report"] = [f"{RESULTS}/report.html"]
