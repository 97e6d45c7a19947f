"""SAEBench's side of tests/exchange, in its own environment: `python run_saebench.py FOLDER`.

FOLDER has a language model in `model`, an SAE exported to SAELens in `sae`, and `tokens.safetensors`. Writes what the
core evaluation measures on the tokens of each name to `NAME.json`.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import calculate_misc_metrics, run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE
from safetensors.torch import load_file
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict

BOS = 1


class TokenRows:
    """Takes the place of SAELens' ActivationsStore, of which the evaluation asks only for tokens."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.place = tokens, 0
        self.context_size, self.store_batch_size_prompts = tokens.shape[1], len(tokens)

    def get_batch_tokens(self, rows: int) -> torch.Tensor:
        """The next rows."""
        self.place += rows
        assert self.place <= len(self.tokens)
        return self.tokens[self.place - rows : self.place]

    def reset_input_dataset(self) -> None:
        """Begin with the first row again."""
        self.place = 0


def load_model(folder: str) -> HookedTransformer:
    """The language model with its weights as they are."""
    config = get_pretrained_model_config(folder, device="cpu")
    model = HookedTransformer(config)
    weights = get_pretrained_state_dict(folder, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    model = load_model(str(folder / "model"))
    _, sae, _ = load_and_format_sae("ours", SAE.load_from_disk(str(folder / "sae"), device="cpu"), "cpu")
    for name, tokens in load_file(folder / "tokens.safetensors").items():
        for excluded in (True, False):
            config = CoreEvalConfig(
                batch_size_prompts=len(tokens), n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
                exclude_special_tokens_from_reconstruction=excluded, compute_kl=True, compute_ce_loss=True,
                compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
                compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
            )  # fmt: skip
            groups, features = run_evals(sae, TokenRows(tokens), model, config, ignore_tokens={BOS})
            found = {key: value for group in groups.values() for key, value in group.items()}
            found |= calculate_misc_metrics(features)
            file = folder / f"{name}{'' if excluded else '_with_special'}.json"
            file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
