"""Direct effects by autograd on the model's own modules, as a reference for the library's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from tests.evaluation.inputs import BOS
from torch import Tensor, nn

from circuitloom.attribution.direct_effects import source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.dictionaries.cross_layer import CrossLayerDictionary, LayerDictionary
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.hooks import Site, find_module
from circuitloom.language_model.model import LanguageModel


@dataclass
class Leaves:
    """Leaves of the autograd graph, one per source, and the outputs of the pass."""

    z: dict[int, Tensor] = field(default_factory=dict)
    error: dict[int, Tensor] = field(default_factory=dict)
    embedding: list[Tensor] = field(default_factory=list)
    """Token embeddings, then position embeddings if the model has them."""
    pre: dict[int, Tensor] = field(default_factory=dict)
    """Pre-activations, [position, feature]."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def frozen_norm(module: nn.Module, args: tuple[Tensor], _output: Tensor) -> Tensor:
    """The norm's formula, with its denominator detached."""
    (x,) = args
    layer_norm = isinstance(module, nn.LayerNorm)
    if layer_norm:
        x = x - x.mean(-1, keepdim=True)
    epsilon = getattr(module, "eps", None) or module.variance_epsilon
    sigma = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
    # norms of Gemma add 1 to their weight
    gain = module.weight + (1.0 if type(module).__name__.startswith("Gemma") else 0.0)
    return gain * x / sigma.detach() + (module.bias if layer_norm else 0.0)


@contextmanager
def frozen_patterns(model: LanguageModel, token: Tensor) -> Iterator[None]:
    """Replace attention patterns by those that the model computes on the prompt, without gradient."""
    from transformers import AttentionInterface, AttentionMaskInterface

    patterns: list[Tensor] = []
    handles = [
        model.attention(layer).register_forward_hook(lambda _m, _a, output: patterns.append(output[1]))
        for layer in range(model.layers)
    ]
    with model.eager_attention(), torch.no_grad():
        model.logits(token[None])
    for handle in handles:
        handle.remove()

    def attend(module, query, _key, value, _mask, **_options):
        pattern = patterns[module.layer_idx]
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (pattern @ value).transpose(1, 2), pattern

    AttentionInterface.register("frozen", attend)
    AttentionMaskInterface.register("frozen", lambda *_args, **_options: None)
    before = model.module.config._attn_implementation
    model.module.set_attn_implementation("frozen")
    try:
        yield
    finally:
        model.module.set_attn_implementation(before)
        del AttentionInterface._global_mapping["frozen"], AttentionMaskInterface._global_mapping["frozen"]


def written_to(dictionaries: dict[int, LayerDictionary], z: dict[int, Tensor], layer: int) -> Tensor:
    """What the features of this layer and, in cross-layer transcoders, of earlier ones write to a layer."""
    written = []
    for writer in range(layer + 1):
        dictionary = dictionaries.get(writer)
        if isinstance(dictionary, CrossLayerDictionary) and layer in dictionary.outputs:
            written.append(z[writer] @ dictionary.W_dec[:, dictionary.outputs.index(layer)])
        elif isinstance(dictionary, Dictionary) and writer == layer:
            written.append(z[writer] @ dictionary.W_dec)
    return torch.stack(written).sum(0)


def run_frozen(model: LanguageModel, dictionaries: dict[int, LayerDictionary], token: Tensor) -> Leaves:
    """Run the model's own modules with a leaf for every source of the linearized model."""
    leaves = Leaves()
    replaced = scored_positions(token[None], BOS)[0][:, None]
    read: dict[int, Tensor] = {}

    def embed(_module, _args, output):
        leaves.embedding.append(output.detach().clone().requires_grad_())
        return leaves.embedding[-1]

    def keep_input(layer: int):
        return lambda _module, args, _output: read.update({layer: args[0][0]})

    def replace(layer: int):
        def output_hook(_module, _args, output):
            x, y = read[layer], output[0].detach()
            reconstruction = torch.zeros_like(y)
            if layer in dictionaries:
                dictionary = dictionaries[layer]
                leaves.pre[layer] = x @ dictionary.W_enc.T + dictionary.b_enc
                leaves.z[layer] = dictionary.encode(x.detach()).requires_grad_()
                skip = 0 if dictionary.W_skip is None else x @ dictionary.W_skip.T
                reconstruction = replaced * (
                    written_to(dictionaries, leaves.z, layer) + dictionary.b_dec + skip
                )
            error = leaves.error[layer] = (y - reconstruction).detach().requires_grad_()
            return (reconstruction + error)[None]

        return output_hook

    anatomy = model.anatomy
    embeddings = [anatomy.embedding, *([] if anatomy.positions is None else [anatomy.positions])]
    hooks = [(model.module.get_submodule(name), embed) for name in embeddings]
    norms = {anatomy.norm_final: model.module.get_submodule(anatomy.norm_final)}
    for layer in range(model.layers):
        site = dictionaries[layer].site_in if layer in dictionaries else "mlp_in"
        hooks.append((find_module(model, Site(site, layer)), keep_input(layer)))
        after, written = model.norm_after_mlp(layer), model.mlp(layer)
        if after is not None and layer in dictionaries and dictionaries[layer].site_out == "mlp_added":
            written, after = after, None
        for name in (anatomy.norm_attention, anatomy.norm_attention_after, anatomy.norm_mlp):
            if (norm := model.norm(layer, name)) is not None:
                norms[f"{layer} {name}"] = norm
        if after is not None:
            norms[f"{layer} after"] = after
        hooks.append((written, replace(layer)))
    hooks += [(norm, frozen_norm) for norm in norms.values()]
    with ExitStack() as stack:
        stack.enter_context(frozen_patterns(model, token))
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        leaves.logits = model.logits(token[None])[0]
    return leaves


def by_autograd(linearized: LinearizedModel, leaves: Leaves, target: Tensor) -> Tensor:
    """A row of direct effects: a target's gradient at each source times the source; the remainder is the constant."""
    columns, features = source_columns(linearized), linearized.features
    row = torch.zeros(len(columns), dtype=torch.float64)
    every = [*leaves.z.values(), *leaves.error.values(), *leaves.embedding]
    gradients = torch.autograd.grad(target, every, retain_graph=True, allow_unused=True)
    effect = {
        id(leaf): torch.zeros_like(leaf, dtype=torch.float64)
        if gradient is None
        else (gradient * leaf).detach().double()
        for leaf, gradient in zip(every, gradients, strict=True)
    }
    for layer, z in leaves.z.items():
        at = features.layer == layer
        row[: columns.active][at] = effect[id(z)][features.position[at], features.feature[at]]
    errors = torch.stack([effect[id(leaves.error[layer])].sum(1) for layer in range(linearized.layers)])
    row[columns.errors] = errors.flatten()
    for place, leaf in zip((columns.embeddings, columns.position_embeddings), leaves.embedding, strict=False):
        row[place] = effect[id(leaf)].view(len(linearized.captured), -1).sum(1)
    row[columns.constant] = target.detach() - row.sum()
    return row
