"""Labels that a language model writes and judges.

1. Features are chosen: a list, or evenly spaced ones among those that fire.
2. The model sees examples of a feature from the learning documents, from all bands of activation, and the tokens whose
   logits the feature raises. It writes a label.
3. Tokens of the scoring documents are sampled (`contexts`). The model sees the label and the text around a token, and
   says whether the feature fires on it. It sees no activation.
4. The scores are estimated from the verdicts (`model_scores`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..config.label_model import LabelModel
from ..core.progress import announce
from ..core.tables import LABEL, write_table
from .answers import STAGE, Journal, ask_all, count_tokens
from .contexts import FeatureActivations, JudgedTokens, Sample, read_activations, sample_tokens
from .firings import Neighbours, read_firings
from .label_source import PROMOTED, LabelSource
from .model_client import ModelClient, Question
from .model_scores import NOT_MEASURED, Stratum, Verdicts
from .prompts import label_question, read_label, read_verdict, verdict_question
from .scores import LabelScore

TYPICAL_LABEL = "a word or a kind of words, after another word"
"""Label of usual length, for the estimate of the cost."""
SHOWN = 5
"""Largest number of features that a notice lists."""

OutputScores = Callable[[Mapping[int, FeatureActivations]], Mapping[int, LabelScore]]
"""Function that returns the output scores of features, given where they fire on the scoring documents."""


def write_model_labels(
    source: LabelSource,
    config: LabelModel,
    client: ModelClient,
    journal_file: Path,
    output_scores: OutputScores,
    path: Path,
) -> None:
    """Write the table `label` with the labels of a language model to `path`.

    Answers are kept in `journal_file`. After an interruption, or with other features or contexts, only the questions
    without an answer are asked. Raises ValueError if the model cannot be asked, or if a table is damaged.
    """
    features = source.choose(config.features)
    journal = Journal(journal_file, client.identity)
    if journal.n_damaged:
        announce(STAGE, f"{journal_file}: {journal.n_damaged} damaged lines are asked again")
    work = ModelLabelling(source, config, features)
    _announce_cost(work, client, journal)
    ask_all(client, journal, list(work.label_questions.values()), f"labels: {source.where}")
    labels = work.labels(journal)
    unlabelled = [feature for feature in work.label_questions if feature not in labels]
    if unlabelled:
        answer = journal[work.label_questions[unlabelled[0]]]
        announce(
            STAGE,
            f"{source.where}: {config.source} gave no label to {len(unlabelled)} features ({_listed(unlabelled)}), "
            f"such as {' '.join((answer or 'a refusal').split())[:80]!r}; they have no row",
        )
    questions = {feature: work.verdict_questions(feature, label) for feature, label in labels.items()}
    ask_all(
        client, journal, [each for asked in questions.values() for each in asked], f"verdicts: {source.where}"
    )
    output = output_scores({feature: work.scoring_activations(feature) for feature in labels})
    rows = []
    n_asked, unread = 0, []
    for feature, label in labels.items():
        # a token can be in two strata
        said = {question: read_verdict(journal[question]) for question in questions[feature]}
        unread += [journal[question] or "" for question, verdict in said.items() if verdict is None]
        n_asked += len(said)
        verdicts = work.verdicts(feature, [said[question] for question in questions[feature]])
        rows.append(
            {
                "run": source.run,
                "layer": source.layer,
                "feature": feature,
                "label": label,
                "source": config.source,
                "kind": "text",
                **verdicts.columns(),
                "n_judged": sum(verdict is not None for verdict in said.values()),
                **output.get(feature, NOT_MEASURED).columns("output"),
                "f1_learning": None,
            }
        )
    if unread:
        announce(
            STAGE,
            f"{source.where}: {len(unread)} of {n_asked} answers are neither yes nor no, "
            f"such as {' '.join(unread[0].split())[:80]!r}; these tokens are not scored",
        )
    write_table(LABEL, rows, path)


class ModelLabelling:
    """The questions about some features, and what their answers mean."""

    def __init__(self, source: LabelSource, config: LabelModel, features: Sequence[int]) -> None:
        self._source = source
        file, context, text = source.tables["activation"], source.tokens.context, source.text
        self._activations = read_activations(file, features, context)
        learning, self._scoring = read_firings(file, source.width, context, text)
        neighbours = Neighbours(learning, len(text.names) + 1)
        self._tokens: dict[int, JudgedTokens] = {
            feature: sample_tokens(
                feature,
                self._scoring,
                neighbours,
                self._activations[feature],
                config.contexts,
                source.bands,
                source.layer,
            )
            for feature in features
        }
        examples = source.examples(features, config.examples)
        promoted = source.promoted(features, PROMOTED)
        self.label_questions = {
            feature: label_question(
                examples[feature], [text for _, text in promoted[feature]], source.spacing
            )
            for feature in features
            if examples[feature]
        }
        """The question for the label of each feature that has an example."""
        if missing := [feature for feature in features if not examples[feature]]:
            announce(
                STAGE,
                f"{source.where}: no example in the learning documents, and no label: {_listed(missing)}",
            )

    @property
    def where(self) -> str:
        """The run and the layer, for messages."""
        return self._source.where

    def labels(self, journal: Journal) -> dict[int, str]:
        """Returns the labels that the model has written so far."""
        found = {
            feature: read_label(journal[question])
            for feature, question in self.label_questions.items()
            if question in journal
        }
        return {feature: label for feature, label in found.items() if label is not None}

    def verdict_questions(self, feature: int, label: str) -> list[Question]:
        """Returns the questions whether a label says that the feature fires on the sampled tokens, in their order."""
        position = np.concatenate([sample.position for sample in self._tokens[feature].strata])
        return [verdict_question(label, text, self._source.spacing) for text in self._source.marked(position)]

    def verdicts(self, feature: int, verdicts: Sequence[bool | None]) -> Verdicts:
        """Returns the verdicts on a feature's sampled tokens by stratum. None: neither yes nor no."""
        said = iter(verdicts)
        document = self._source.text.scoring.document

        def stratum(sample: Sample) -> Stratum:
            kept = [
                (place, verdict)
                for place, verdict in zip(sample.position.tolist(), said, strict=False)
                if verdict is not None
            ]
            places, predicted = zip(*kept, strict=True) if kept else ((), ())
            return Stratum(sample.size, document[np.array(places, int)], np.array(predicted, float))

        tokens = self._tokens[feature]
        bands = [stratum(sample) for sample in tokens.bands]
        return Verdicts(bands, stratum(tokens.near), stratum(tokens.hard), stratum(tokens.others))

    def scoring_activations(self, feature: int) -> FeatureActivations:
        """Returns the activations of a feature on the scoring documents."""
        return self._activations[feature].inside(self._source.text.scoring.index)


def _announce_cost(work: ModelLabelling, client: ModelClient, journal: Journal) -> None:
    """Print what will be asked, before anything is."""
    known = work.labels(journal)
    labels = [question for question in work.label_questions.values() if question not in journal]
    verdicts: list[Question] = []
    for feature, asked in work.label_questions.items():
        # no verdict is asked for about a label that the model refused to write
        if feature in known or asked not in journal:
            questions = work.verdict_questions(feature, known.get(feature, TYPICAL_LABEL))
            # a token can be in two strata
            distinct = {journal.key(question): question for question in questions if question not in journal}
            verdicts += distinct.values()
    answers = sum(question.answer_tokens for question in (*labels, *verdicts))
    announce(
        STAGE,
        f"{work.where}: asks {client.place} for {len(labels)} labels and {len(verdicts)} verdicts: about "
        f"{count_tokens([*labels, *verdicts]):,} tokens of prompts and at most {answers:,} of answers",
    )


def _listed(features: Sequence[int]) -> str:
    more = f" and {len(features) - SHOWN} more" if len(features) > SHOWN else ""
    return f"{', '.join(map(str, features[:SHOWN]))}{more}"
