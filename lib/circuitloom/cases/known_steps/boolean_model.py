"""A GPT-2 whose weights are set by hand, so that its circuit is known: it computes a Boolean function in three steps.

The text has eight bits, which are four pairs (a_i, b_i).

    layer 0    p_i = a_i and b_i            i = 0..3
    layer 1    q_j = p_2j and p_2j+1        j = 0, 1
    layer 2    r   = q_0 or q_1             read by the logit of one token

Each value has a dimension of its own in the residual stream, and its negative next to it, so that the mean is 0. A
large constant in two more dimensions keeps the norms' denominators the same up to 0.1 %; the norms' gains undo them. No
step can read what an earlier one has read: the MLPs of layers 1 and 2 read only p and q.

With `across`, a token has two pairs, p_1 and p_3 come from the previous token, and the only head, in layer 1, fetches
them. Else a token has all four pairs, and attention writes nothing.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...language_model.anatomy import find_anatomy
from ...language_model.hooks import Edit, ReadingEdit, Site
from ...language_model.model import LanguageModel

D, LAYERS, NEURONS = 32, 3, 8
BOS = 0
CONSTANT = 100.0
"""Value of the two constant dimensions."""
LOGIT = 5.0
"""Logit of the answer if r is true."""
SHARPNESS = 40.0
"""Logit of the head's attention to the previous token."""
PAIRS = 4


@dataclass(frozen=True)
class BooleanModel:
    """The model, all its texts, and the truth of each step."""

    model: LanguageModel
    token: Int[Tensor, "text position"]
    """All 256 texts: BOS and one token, or BOS and two tokens."""
    answer: int
    """Token whose logit says r."""
    steps: dict[tuple[int, str], Bool[Tensor, "text position"]]
    """Maps (layer that computes it, name of the value) to its truth at each position. Across tokens, p_1 and p_3 are
    p_0 and p_2 of the previous position, so only these are computed."""
    neurons: dict[tuple[int, str], tuple[int, ...]]
    """Maps the same keys to the neurons that compute the value."""

    def texts(self, pair: int) -> Int[Tensor, " text"]:
        """Returns the numbers of the texts on which q of `pair` is true at the last position, and the other is not."""
        own, other = (self.steps[1, f"q_{j}"][:, -1] for j in (pair, 1 - pair))
        return (own & ~other).nonzero()[:, 0]

    def names(self, pair: int, layer: int) -> list[str]:
        """Returns the names of the values of `layer` that r is computed from if q of `pair` is true."""
        possible = [f"p_{2 * pair}", f"p_{2 * pair + 1}", f"q_{pair}"]
        return [name for name in possible if (layer, name) in self.neurons]

    def ablation(self, layer: int, name: str) -> dict[Site, Edit]:
        """Returns hooks that set the neurons that compute a value to 0, at the last position."""
        numbers = list(self.neurons[layer, name])

        def ablate(_x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            y[:, -1, numbers] = 0.0
            return y

        return {Site("neurons", layer): ReadingEdit("neurons", ablate)}


def make_boolean_model(across: bool) -> BooleanModel:
    """Returns the model, with pairs from two tokens (`across`) or from one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    bits = PAIRS if across else 2 * PAIRS
    tokens = 2**bits
    # dimensions of the residual stream, in units of two
    place = {name: i for i, name in enumerate(_values(across))}
    config = GPT2Config(
        vocab_size=tokens + 2, n_positions=4, n_embd=D, n_layer=LAYERS, n_head=1, n_inner=NEURONS,
        activation_function="relu", tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=BOS,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    for parameter in module.parameters():
        parameter.data.zero_()
    # torch types parts of a module as tensors or modules
    own: Any = module.transformer
    embedding = own.wte.weight.data
    embedding[:, -2:] = torch.tensor([CONSTANT, -CONSTANT])
    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=bits)))
    for i in range(bits):
        embedding[1 : 1 + tokens] += values[:, i, None] * _write(place[f"bit {i}"])
    denominator = (2 * CONSTANT**2 / D) ** 0.5
    norms = [own.ln_f, *(norm for block in own.h for norm in (block.ln_1, block.ln_2))]
    for norm in norms:
        norm.weight.data[:-2] = denominator
    for layer, circuit in enumerate(_circuit(across)):
        mlp: Any = own.h[layer].mlp
        for number, (sources, bias, target, sign) in enumerate(circuit):
            for source in sources:
                mlp.c_fc.weight.data[:, number] += _read(place[source])
            mlp.c_fc.bias.data[number] = bias
            mlp.c_proj.weight.data[number] = sign * _write(place[target])
    if across:
        _fetch_previous(own, place)
    module.lm_head.weight.data[tokens + 1] = LOGIT * _read(place["r"])
    words = torch.arange(1, 1 + tokens)
    columns = torch.cartesian_prod(words, words) if across else words[:, None]
    token = torch.cat([torch.full_like(columns[:, :1], BOS), columns], 1)
    steps = _truth(token, values, across)
    neurons: dict[tuple[int, str], tuple[int, ...]] = {}
    for layer, circuit in enumerate(_circuit(across)):
        for number, (_, _, target, _) in enumerate(circuit):
            neurons[layer, target] = (*neurons.get((layer, target), ()), number)
    # the name by which the parts of a model are found
    module.config.architectures = [type(module).__name__]
    return BooleanModel(LanguageModel(module, find_anatomy(module.config)), token, tokens + 1, steps, neurons)


def _values(across: bool) -> list[str]:
    bits = [f"bit {i}" for i in range(PAIRS if across else 2 * PAIRS)]
    positions = [f"position {i}" for i in range(3)] if across else []
    return [*bits, *(f"p_{i}" for i in range(PAIRS)), "q_0", "q_1", "r", *positions]


def _circuit(across: bool) -> list[list[tuple[tuple[str, ...], float, str, float]]]:
    """Returns the neurons of each layer: (values to add up, bias, value to write to, sign)."""
    # across tokens, a token has the pairs 0 and 2, and the head copies the previous token's to 1 and 3
    pairs = (0, 2) if across else range(PAIRS)
    first = [((f"bit {2 * i}", f"bit {2 * i + 1}"), -1.0, f"p_{pair}", 1.0) for i, pair in enumerate(pairs)]
    second = [((f"p_{2 * j}", f"p_{2 * j + 1}"), -1.0, f"q_{j}", 1.0) for j in range(2)]
    third = [(("q_0", "q_1"), 0.0, "r", 1.0), (("q_0", "q_1"), -1.0, "r", -1.0)]
    return [first, second, third]


def _truth(token: Tensor, values: Tensor, across: bool) -> dict[tuple[int, str], Tensor]:
    bits = torch.cat([torch.zeros_like(values[:1]), values])[token].bool()
    own = bits[..., ::2] & bits[..., 1::2]
    if across:
        previous = torch.cat([torch.zeros_like(own[:, :1]), own[:, :-1]], 1)
        p = {"p_0": own[..., 0], "p_2": own[..., 1]}
        q = [own[..., j] & previous[..., j] for j in range(2)]
    else:
        p = {f"p_{i}": own[..., i] for i in range(PAIRS)}
        q = [own[..., 2 * j] & own[..., 2 * j + 1] for j in range(2)]
    steps = {(0, name): value for name, value in p.items()}
    return steps | {(1, f"q_{j}"): q[j] for j in range(2)} | {(2, "r"): q[0] | q[1]}


def _fetch_previous(model: Any, place: dict[str, int]) -> None:
    """Set the head of layer 1: it attends to the previous position and copies p_0 to p_1 and p_2 to p_3."""
    attention = model.h[1].attn
    query, key, value = attention.c_attn.weight.data.split(D, dim=1)
    size = (SHARPNESS * D**0.5) ** 0.5
    for position in range(3):
        model.wpe.weight.data[position] += _write(place[f"position {position}"])
        # coordinate i of queries and keys stands for position i
        key[:, position] = size * _read(place[f"position {position}"])
        query[:, max(0, position - 1)] += size * _read(place[f"position {position}"])
    for i, (source, target) in enumerate((("p_0", "p_1"), ("p_2", "p_3"))):
        value[:, i] = _read(place[source])
        attention.c_proj.weight.data[i] = _write(place[target])


def _write(place: int) -> Tensor:
    vector = torch.zeros(D)
    vector[2 * place], vector[2 * place + 1] = 1.0, -1.0
    return vector


def _read(place: int) -> Tensor:
    return _write(place) / 2
