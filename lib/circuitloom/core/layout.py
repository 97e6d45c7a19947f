"""Paths of a study's files under results/STUDY, for the workflow's rules and the library."""

import glob
from dataclasses import dataclass
from pathlib import Path

ALL_LAYERS = -1
"""Value of the column `layer` in rows about all layers replaced at once, or about the best of all layers."""

NEURONS, RESIDUAL = "neurons", "residual"
"""Names of the runs whose features are MLP neurons and residual directions."""
RANDOM = "random"
"""Name of the run whose features are random directions, in the table `dictionary_benchmark`."""
RULE, FREQUENT, PLANTED = "rule", "frequent", "planted"
"""Sources of labels that no language model writes, in the table `label`. The last two are there to compare with."""
CATALOG = "catalog.duckdb"
LOGS, BENCHMARKS, CHECKSUMS = "logs", "benchmarks", "checksums"
FEATURE_TABLES = ("feature", "histogram", "activation", "code", "example", "logit")
TRACE_TABLES = (
    "trace",
    "node",
    "edge",
    "path",
    "intervention",
    "attention_score",
    "subgraph",
    "subgraph_node",
)
AGGREGATE_TABLES = ("aggregate_node", "aggregate_edge")
BEHAVIOUR_TABLES = ("causal", "faithfulness", "feature_effect", *AGGREGATE_TABLES, "outcome")
COMPARED_TABLES = ("compared_run", "compared_prompt")
WEIGHTS_TABLES = ("deembedding", "connection", "blind")

TABLE_FOLDERS = {
    "corpus": ("document", "token", "concept", "notice"),
    "model": ("pretraining",),
    "language_model": ("language_model",),
    "activations": ("activation_norm",),
    "dictionaries/*/*": ("history",),
    "evaluation": ("run", "metric", "density_histogram", "feature_concept", "concept_score", "pareto"),
    "evaluation/baseline/*": ("baseline",),
    "benchmark": ("dictionary_benchmark",),
    "features/*/*": FEATURE_TABLES,
    "labels/*/*/*": ("label", "label_output"),
    "circuits/weights/*/*": WEIGHTS_TABLES,
    "circuits/*": (*TRACE_TABLES, *BEHAVIOUR_TABLES),
    "cases/*": (
        "claim",
        "outcome",
        "source",
        "faithfulness",
        "year",
        "component",
        "planted",
        *COMPARED_TABLES,
        *AGGREGATE_TABLES,
    ),
}
"""Maps a glob pattern of folders, relative to results/STUDY, to the tables that the catalogue reads from these
folders."""


@dataclass(frozen=True)
class Layout:
    """Paths of one study's results. Arguments such as `run` and `layer` may be wildcards, such as "{run}"."""

    root: Path
    """The study's folder, results/STUDY."""

    @classmethod
    def of(cls, study: str) -> "Layout":
        """Returns the layout of a study, with paths relative to the project's folder."""
        return cls(Path("results", study))

    @classmethod
    def find(cls, name: str) -> "Layout":
        """Returns the layout of the study `name`, or of the results in the folder `name`. Raises ValueError if there is
        neither."""
        folders = [folder for folder in (Path(name), cls.of(name).root) if folder.is_dir()]
        if not folders:
            raise ValueError(
                f"there is no study {name}: no folder {cls.of(name).root}, and no folder of this name; name a study "
                "that has run, or the folder of its results"
            )
        parts = {pattern.split("/")[0] for pattern in TABLE_FOLDERS}
        # another folder of the project may have the name of a study
        return cls(
            next((each for each in folders if any((each / part).is_dir() for part in parts)), folders[0])
        )

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.root / "corpus" / "tokenizer"

    def tokens(self, split: str) -> Path:
        """Zarr array of the tokens of a split. `split` is train or validation."""
        return self.root / "corpus" / f"{split}.zarr"

    def corpus_table(self, table: str) -> Path:
        """File of a table of the corpus. `table` is document, token, concept or notice."""
        return self.root / "corpus" / f"{table}.parquet"

    @property
    def model(self) -> Path:
        """Folder of the language model, in the Hugging Face layout."""
        return self.root / "model"

    @property
    def model_quality(self) -> Path:
        """File of the table with the model's loss on held-out tokens."""
        return self.root / "language_model" / "language_model.parquet"

    @property
    def pretraining_figure(self) -> Path:
        """Picture of the model's loss during pretraining."""
        return self.root / "language_model" / "pretraining.png"

    @property
    def activations(self) -> Path:
        """Folder of all cached activations."""
        return self.root / "activations"

    @property
    def row_order(self) -> Path:
        """Zarr group with the sequence and the position of each cached row."""
        return self.activations / "rows.zarr"

    @property
    def activation_norms(self) -> Path:
        """File of the table with the norms of the cached activations."""
        return self.activations / "activation_norm.parquet"

    def activation_layer(self, site: str, layer: int | str) -> Path:
        """Zarr group of one site's activations at one layer."""
        return layer_group(self.activations / site, layer)

    def activation_part(self, site: str, part: int | str, parts: int) -> Path:
        """Folder with the shards of job `part` (from 0), if `parts` jobs cache one site together."""
        return self.activations / "parts" / site / f"{part}of{parts}"

    @property
    def dictionaries(self) -> Path:
        """Folder of all dictionaries."""
        return self.root / "dictionaries"

    def dictionary(self, run: str, layer: int | str) -> Path:
        """Folder of a run's dictionary at one layer."""
        return self.dictionaries / run / f"layer{layer}"

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation."""
        return self.root / "evaluation"

    def evaluation_table(self, table: str) -> Path:
        """File of an evaluation table that has rows for all runs and layers."""
        return self.evaluation / f"{table}.parquet"

    def run_evaluation(self, run: str, layer: int | str, table: str) -> Path:
        """File of an evaluation table of one run at one layer. Layer -1 means all layers replaced at once."""
        return self.evaluation / run / f"layer{layer}" / f"{table}.parquet"

    def baseline(self, site: str) -> Path:
        """File of the table with the model's loss when a site is ablated."""
        return self.evaluation / "baseline" / site / "baseline.parquet"

    def concept_matches(self, sweep: str | None) -> Path:
        """File of the table that matches features of the runs of `sweep` with concepts. If `sweep` is None, the
        features are neurons and residual directions."""
        folder = self.evaluation / "basis" if sweep is None else self.evaluation / "concept" / sweep
        return folder / "feature_concept.parquet"

    @property
    def pareto_figure(self) -> Path:
        """Picture of the Pareto front."""
        return self.evaluation / "pareto.png"

    @property
    def dictionary_benchmark(self) -> Path:
        """File of the table that `circuitloom benchmark` writes."""
        return self.root / "benchmark" / "dictionary_benchmark.parquet"

    @property
    def all_features(self) -> Path:
        """Folder of the feature tables of all runs."""
        return self.root / "features"

    def features(self, run: str, layer: int | str) -> Path:
        """Folder of the feature tables of one run at one layer."""
        return self.all_features / run / f"layer{layer}"

    def feature_table(self, run: str, layer: int | str, table: str) -> Path:
        """File of a feature table of one run at one layer. `table` is one of FEATURE_TABLES."""
        return self.features(run, layer) / f"{table}.parquet"

    def labels(self, maker: str, run: str, layer: int | str) -> Path:
        """File of the labels of one run at one layer. `maker` is rules or model."""
        return self.root / "labels" / maker / run / f"layer{layer}" / "label.parquet"

    def label_outputs(self, run: str, layer: int | str) -> Path:
        """File of the output scores of the labels by rules of one run at one layer."""
        return self.labels("rules", run, layer).with_name("label_output.parquet")

    def label_files(self, run: str) -> list[Path]:
        """Files of the labels of a run that exist, of all makers and layers."""
        return sorted(self.root.glob(f"labels/*/{glob.escape(run)}/layer*/label.parquet"))

    def label_answers(self, run: str, layer: int | str) -> Path:
        """File of the answers of language models about the features of one run at one layer. It is no output of a rule:
        it stays when the labels are made again."""
        return self.labels("model", run, layer).with_name("answers.jsonl")

    @property
    def circuits(self) -> Path:
        """Folder of all traces, behaviours and analyses of weights."""
        return self.root / "circuits"

    def trace(self, trace: str) -> Path:
        """Folder of a traced prompt, with TRACE_TABLES, graph.json and graph.png."""
        return self.circuits / trace

    def behaviour(self, behaviour: str) -> Path:
        """Folder of a behaviour, with BEHAVIOUR_TABLES."""
        return self.circuits / behaviour

    def supernodes(self, trace: str) -> Path:
        """File of the supernodes of a trace that were saved in the explorer. No rule makes it."""
        return self.trace(trace) / "supernodes.json"

    def weights(self, run: str, layer: int | str) -> Path:
        """Folder of the analysis of one run's weights at one layer, with WEIGHTS_TABLES."""
        return self.circuits / "weights" / run / f"layer{layer}"

    def case(self, case: str) -> Path:
        """Folder of a case study, with its tables, its pictures and result.md."""
        return self.root / "cases" / case

    def export(self, run: str, format_name: str) -> Path:
        """Folder of a run's dictionaries in the format of another library, with a card."""
        return self.root / "exchange" / run / format_name

    @property
    def catalog(self) -> Path:
        """DuckDB database with views and macros over all tables."""
        return self.root / CATALOG

    @property
    def report(self) -> Path:
        """File of the report, one HTML page."""
        return self.root / "report.html"

    def log(self, job: str) -> Path:
        """Log file of a job."""
        return self.root / LOGS / f"{job}.log"

    def benchmark(self, job: str) -> Path:
        """File with the run time and memory of a job, written by Snakemake."""
        return self.root / BENCHMARKS / f"{job}.tsv"

    @property
    def benchmarks(self) -> Path:
        """Folder with the run times and memory of all jobs."""
        return self.root / BENCHMARKS

    @property
    def lock(self) -> Path:
        """File that a running workflow locks."""
        return self.root / ".lock"

    def checksums(self, output: Path) -> Path:
        """File with the record of `output`. Its path under checksums/ is the path of `output` under the study's
        folder."""
        path = self.root / CHECKSUMS / output.relative_to(self.root)
        return path.with_name(f"{path.name}.json")


def layer_group(folder: Path, layer: int | str) -> Path:
    """Zarr group of one layer, in the folder of a site's activations."""
    return folder / f"layer{layer}.zarr"
