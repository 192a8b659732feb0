"""The operator passes torch's own checks, and torch.compile takes it as one step."""

import pytest
import torch

from nxm_hf.inference.operator import packed_linear
from nxm_hf.inference.sparse_linear import SparseLinear
from tests.support.inference import sparse_bert, sparse_linear

pytest.importorskip("numba", reason="the kernels for CPUs need numba")


def test_the_operator_passes_the_checks_of_torch():
    dense = sparse_linear(20, 64)
    layer = SparseLinear(dense.weight, dense.bias, (2, 4))
    arguments = (torch.randn(2, 3, 64), layer.values, layer.indices, layer.bias, *layer.layout)
    checks = ("test_schema", "test_faketensor")
    assert set(torch.library.opcheck(packed_linear, arguments, test_utils=checks).values()) == {"SUCCESS"}


def test_a_compiled_model_has_no_break_and_gives_the_same():
    model = sparse_bert()
    for block in model.bert.encoder.layer:
        dense = block.intermediate.dense
        block.intermediate.dense = SparseLinear(dense.weight, dense.bias, (2, 4))
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(input_ids=ids).logits, expected)
