"""Writes the report, one HTML page made from the catalogue, the config, the case studies and the times of the jobs."""

CASE_RESULTS = [file for file in TARGETS["cases"] if file.name == "result.md"]
CASE_PICTURES = [file for file in TARGETS["cases"] if file.suffix == ".png"]


rule write_report:
    input:
        # the catalogue has no data of its own; its views read these files
        TARGETS["features"],
        TARGETS["circuits"],
        TARGETS["labels"],
        TARGETS["cases"],
        TARGETS["evaluation"],
        TARGETS["language_model"],
        NORMS,
        catalog=TARGETS["catalog"][0],
        model=LAYOUT.model,
        tokens=[LAYOUT.tokens(split) for split in ("train", "validation")],
        dictionaries=dictionary_folders(STUDY.runs, STUDY.layers),
        results=CASE_RESULTS,
        pictures=CASE_PICTURES,
    output:
        report(
            LAYOUT.report,
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        LAYOUT.log("write_report"),
    benchmark:
        LAYOUT.benchmark("write_report")
    resources:
        **needs("report"),
    params:
        # what is exported does not change the results
        config=STUDY.model_dump(mode="json", exclude={"resources", "exchange"}),
        case_runs={name: (STUDY.case_runs(name) or [""])[0] for name in STUDY.cases},
        benchmarks=str(LAYOUT.benchmarks),
        code=code("report_write"),
    script:
        "../../scripts/report_write.py"


TARGETS["report"] = [LAYOUT.report]
