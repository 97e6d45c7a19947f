"""circuit-tracer's graphs of one prompt, in its own environment: `python trace_circuit_tracer.py FOLDER`.

FOLDER has the language model in `model`, the tokens in `prompt.json`, and for each case a transcoder set in
`cases/NAME/set`. Writes `cases/NAME/theirsLENGTH.safetensors`.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from safetensors.torch import save_file


def main() -> None:
    torch.set_num_threads(1)
    folder, cpu = Path(sys.argv[1]), torch.device("cpu")
    token = torch.tensor(json.loads((folder / "prompt.json").read_text()))
    for case in sorted((folder / "cases").iterdir()):
        # a set in a folder is read as one in the cache
        transcoders, config = load_transcoder_from_hub(
            "set", device=cpu, cache_dir=str(case), lazy_decoder=False
        )
        if config.get("activation") == "topk":
            # version 0.5.0 has this class, but does not read it from config.yaml
            for transcoder in transcoders:
                transcoder.activation_function = TopK(config["k"])
        model = ReplacementModel.from_pretrained_and_transcoders(
            str(folder / "model"), transcoders, device=cpu, dtype=torch.float32, backend="nnsight"
        )
        graph = attribute(token, model, batch_size=32)
        tensors = {
            "adjacency": graph.adjacency_matrix,
            "feature": graph.active_features,
            "activation": graph.activation_values.detach(),
            "logit": graph.logit_token_ids,
            "scores": torch.tensor(compute_graph_scores(graph)),
        }
        file = case / f"theirs{len(token)}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


if __name__ == "__main__":
    main()
