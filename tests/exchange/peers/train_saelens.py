"""SAELens trains on stories260K, in its own environment: `python train_saelens.py FOLDER MODEL`.

Trains an SAE with SAELens' runner on the tokens `train` of FOLDER/tokens.safetensors, [row, position], saves it to
FOLDER/sae, and evaluates it on the tokens `held_out` with SAELens' evaluation. SAELens has no trainer of transcoders,
so FOLDER/transcoder is one of its class with a random encoder and the decoder of least squared error.

Writes FOLDER/metrics.json, and FOLDER/held_out.safetensors: activations of the language model, and what both
dictionaries compute from them.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.evals import EvalConfig, ExplainedVarianceCalculator, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict

LAYER, WIDTH, K, BATCH = 2, 256, 8, 16
READS, WRITES = f"blocks.{LAYER}.ln2.hook_normalized", f"blocks.{LAYER}.hook_mlp_out"
"""TransformerLens' hooks of the MLP's input, before the gain of its norm, and of its output."""


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, model_name = Path(sys.argv[1]), sys.argv[2]
    tokens = load_file(folder / "tokens.safetensors")
    runner = train(tokens["train"], model_name, folder / "sae")
    # the SAE as it is saved for inference
    sae, model = SAE.load_from_disk(folder / "sae"), runner.model
    held_out = tokens["held_out"]
    store = ActivationsStore.from_sae(
        model, sae, Dataset.from_dict({"tokens": held_out.tolist()}), context_size=held_out.shape[1]
    )
    wanted = EvalConfig(
        batch_size_prompts=BATCH,
        n_eval_sparsity_variance_batches=len(held_out) // BATCH,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    metrics, _ = run_evals(sae, store, model, ActivationScaler(), wanted, exclude_special_tokens=True)
    x, y = activations(model, tokens["train"])
    transcoder = fit_transcoder(x, y, model_name)
    transcoder.save_model(folder / "transcoder")
    special = sorted(get_special_token_ids(model.tokenizer))
    x, y = activations(model, held_out)
    read = ~torch.isin(held_out.flatten(), torch.tensor(special))
    with torch.no_grad():
        results = {
            "x": x, "y": y, "sae_z": sae.encode(y), "sae_y": sae(y), "transcoder_z": transcoder.encode(x),
            "transcoder_y": transcoder(x),
        }  # fmt: skip
    variance = ExplainedVarianceCalculator()
    variance.add_batch(results["transcoder_y"][read], y[read])
    l0 = float((results["transcoder_z"][read] != 0).sum(1).double().mean())
    scores = {
        "sae": metrics,
        "transcoder": {"l0": l0, "explained_variance": variance.compute()},
        "special": special,
    }
    (folder / "metrics.json").write_text(json.dumps(scores))
    save_file({name: value.contiguous() for name, value in results.items()}, folder / "held_out.safetensors")


def train(tokens: torch.Tensor, model_name: str, output: Path) -> LanguageModelSAETrainingRunner:
    """Train a batchtopk SAE on the MLP's output, over the tokens twice, and save it. Returns SAELens' runner."""
    dataset = Dataset.from_dict({"tokens": tokens.tolist()})
    config = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(d_in=64, d_sae=WIDTH, k=K),
        model_name=model_name,
        hook_name=WRITES,
        context_size=tokens.shape[1],
        training_tokens=2 * tokens.numel(),
        train_batch_size_tokens=1024,
        store_batch_size_prompts=BATCH,
        n_batches_in_buffer=2 * BATCH,
        lr=3e-3,
        exclude_special_tokens=True,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(output),
        verbose=False,
    )
    runner = LanguageModelSAETrainingRunner(
        config, override_dataset=dataset, override_model=load_model(model_name)
    )
    runner.run()
    return runner


def load_model(folder: str) -> HookedTransformer:
    """The language model, with the weights as they are. `HookedTransformer.from_pretrained` takes only names that
    TransformerLens lists, but its loaders of configs and weights take folders."""
    config = get_pretrained_model_config(folder, device="cpu")
    model = HookedTransformer(config)
    weights = get_pretrained_state_dict(folder, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model


def activations(model, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and outputs of the MLP, [token, d]."""
    found: dict[str, list[torch.Tensor]] = {READS: [], WRITES: []}
    with torch.no_grad():
        for rows in tokens.split(BATCH):
            # the tokens begin with a BOS
            _, cache = model.run_with_cache(
                rows, prepend_bos=False, names_filter=[READS, WRITES], stop_at_layer=LAYER + 1
            )
            for hook, values in found.items():
                values.append(cache[hook].flatten(0, 1))
    return torch.cat(found[READS]), torch.cat(found[WRITES])


def fit_transcoder(x: torch.Tensor, y: torch.Tensor, model_name: str) -> JumpReLUTranscoder:
    """A transcoder whose features fire on K of WIDTH tokens each."""
    config = JumpReLUTranscoderConfig(
        d_in=64, d_sae=WIDTH, d_out=64, device="cpu", dtype="float32", apply_b_dec_to_input=False
    )
    for name, value in {"model_name": model_name, "hook_name": READS, "hook_name_out": WRITES}.items():
        setattr(config.metadata, name, value)
    transcoder = JumpReLUTranscoder(config)
    with torch.no_grad():
        transcoder.W_enc.normal_()
        transcoder.threshold.copy_((x @ transcoder.W_enc).quantile(1 - K / WIDTH, dim=0))
        z = transcoder.encode(x)
        found = torch.linalg.lstsq(torch.cat([z, torch.ones(len(z), 1)], 1), y).solution
        transcoder.W_dec.copy_(found[:-1])
        transcoder.b_dec.copy_(found[-1])
    return transcoder


if __name__ == "__main__":
    main()
