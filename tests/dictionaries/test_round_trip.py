"""What is exported and imported again has the same tensors, to the bit."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.exchange.results import SAE, random_dictionary, write_results
from torch import Tensor

from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun

READER = "circuitloom.dictionaries.formats.published"
CASES = [
    (name, act, skip, sae)
    for name, acts, skips, saes in (
        ("circuit-tracer", ("relu", "threshold", "topk"), (False, True), (False,)),
        ("saelens", ("relu", "threshold"), (False, True), (False,)),
        ("saelens", ("relu", "threshold", "topk"), (False,), (True,)),
        ("sparsify", ("topk",), (False, True), (False,)),
        # SAEs with a skip connection are exported, but not imported
        ("sparsify", ("topk",), (False,), (True,)),
    )
    for act in acts
    for skip in skips
    for sae in saes
]


@pytest.mark.skipif(find_spec(READER) is None, reason="this version does not import published dictionaries")
@pytest.mark.parametrize(("name", "act", "skip", "sae"), CASES)
def test_an_exported_dictionary_is_imported_to_the_bit(
    name: str, act: str, skip: bool, sae: bool, tmp_path: Path
) -> None:
    from circuitloom.dictionaries.formats.published import read_published

    sites = SAE if sae else {}
    made = {layer: random_dictionary(layer, act, skip, **sites) for layer in (0, 1)}
    export_run(name, StoredRun(write_results(tmp_path / "study", made), "some"), tmp_path / "out")
    for layer, dictionary in made.items():
        again = read_published(tmp_path / "out", layer)
        assert (again.act, again.k, again.layer) == (dictionary.act, dictionary.k, layer)
        assert (again.is_sae, again.is_transcoder) == (sae, not sae)
        for key, value in vars(dictionary).items():
            if isinstance(value, Tensor):
                # sparsify's SAEs encode x - b_dec, so b_enc is changed and changed back
                tolerance = 1e-6 if (name, sae, key) == ("sparsify", True, "b_enc") else 0.0
                torch.testing.assert_close(getattr(again, key), value, atol=tolerance, rtol=tolerance)
        x = torch.randn(30, dictionary.d_in)
        if (name, sae) != ("sparsify", True):
            assert torch.equal(again.encode(x), dictionary.encode(x))
            assert torch.equal(again(x), dictionary(x))
