"""A behaviour of the config, from its texts to its tables."""

import pyarrow as pa

from ..config.circuits import Behaviour, parse_target
from ..corpus.tokenizer import Tokenizer
from ..language_model.model import LanguageModel
from .component_study import Budget, Runs, study_components
from .probes import Metric, logit, logit_difference, make_probes
from .targets import find_token, read_prompt


def study_behaviour(
    study: str, model: LanguageModel, tokenizer: Tokenizer, runs: Runs, behaviour: Behaviour, context: int
) -> dict[str, pa.Table]:
    """The tables `causal`, `faithfulness` and `feature_effect` of a behaviour, by name.

    Bases are the features of each run (run to layer to dictionary), the heads and the neurons; `context` is the
    longest prompt, in tokens. Raises ValueError where a text or a token cannot be read.
    """
    strings = tokenizer.strings()
    tokens = [read_prompt(example.text, tokenizer, context) for example in behaviour.prompts]
    metrics = [read_metric(example.target, strings) for example in behaviour.prompts]
    probes = make_probes(tokens, metrics, tokenizer.bos_id)
    budget = Budget(measured=behaviour.measured, per_source=behaviour.per_source, targets=behaviour.targets)
    return study_components(study, model, probes, runs, budget, behaviour.ablations)


def read_metric(target: str, strings: list[str]) -> Metric:
    """What `logit TOKEN` or `logit TOKEN vs TOKEN` asks of logits; ValueError where a token is none."""
    wanted = parse_target(target)
    token = find_token(wanted.token, strings)
    return (
        logit(token) if not wanted.against else logit_difference(token, find_token(wanted.against, strings))
    )
