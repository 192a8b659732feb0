"""Statistics of the inputs of layers: their sums, what they share, and which positions count as tokens."""

import pytest
import torch
from torch import nn

from nxm_hf import prune
from nxm_hf.pruning.input_statistics import PANEL, GramSum, token_masks, token_rows
from tests.support.layer_inputs import Witness
from tests.support.models import make_batches, make_model


def test_a_gram_matrix_that_is_summed_in_panels_is_whole():
    x = torch.randn(30, 2 * PANEL + 76)
    sums = GramSum(x.shape[1], x.device)
    for part in x.split(20):
        sums.add(part, 0)
    torch.testing.assert_close(sums.gram, x.double().T @ x.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.gram, sums.gram.T)


@pytest.mark.parametrize("width", [3, PANEL, PANEL + 1, 2 * PANEL + 7])
def test_the_gram_matrix_takes_no_memory_beside_the_sums_and_goes_on_to_be_summed(width):
    x = torch.randn(9, width)
    once, twice = GramSum(width, x.device), GramSum(width, x.device)
    for part in x.split(4):
        for sums in (once, twice):
            sums.add(part, 0)
        first, second = twice.gram, twice.gram
        assert first.data_ptr() == second.data_ptr() and torch.equal(first, first.T)
    assert torch.equal(once.gram, twice.gram)
    torch.testing.assert_close(once.gram, x.double().T @ x.double(), rtol=1e-5, atol=1e-4)


def test_layers_that_share_an_input_share_one_gram_matrix():
    witness = Witness()
    prune(make_model("bert"), "2:4", witness, make_batches("bert"))
    query, key, value, output, up, _ = witness.seen[:6]
    assert query is key and key is value and output is not value and up.gram is not query.gram


def test_a_model_with_tokens_first_and_one_with_flat_tokens_leave_padding_out_too():
    class Flat(nn.Module):
        def __init__(self, lay_out):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2))
            self.table, self.lay_out = nn.Embedding(50, 4), lay_out

        def forward(self, input_ids, attention_mask):
            x = self.lay_out(self.table(input_ids))
            for layer in self.layers:
                x = layer(x)
            return x

    batch = make_batches("bert", 1)[0]
    for lay_out in (lambda x: x, lambda x: x.transpose(0, 1), lambda x: x.flatten(0, 1)):
        torch.manual_seed(0)
        model, witness = Flat(lay_out), Witness()
        kept = model.table(batch["input_ids"])[batch["attention_mask"].bool()]
        prune(model, "2:4", witness, [batch])
        assert witness.seen[0].count == 13
        torch.testing.assert_close(witness.seen[0].gram.float(), kept.T @ kept)


def test_of_labels_that_a_decoder_reads_those_of_minus_100_are_padding():
    labels, mask = torch.tensor([[5, 6, -100], [7, -100, -100]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    encoder, decoder = token_masks({"attention_mask": mask, "labels": labels}, two_stacks=True)
    assert encoder.tolist() == mask.bool().tolist()
    assert decoder.tolist() == [[True, True, False], [True, False, False]]
    assert token_masks({"labels": labels}, two_stacks=False) == (None, None)
    given = {"labels": labels, "decoder_input_ids": labels, "decoder_attention_mask": mask}
    assert torch.equal(token_masks(given, two_stacks=True)[1], mask.bool())
    del given["decoder_attention_mask"]
    assert token_masks(given, two_stacks=True) == (None, None)


def test_a_model_that_makes_the_decoders_input_of_its_labels_is_calibrated_without_padding():
    batch = make_batches("t5", 1, padded=False)[0]
    labels = batch["decoder_input_ids"].clone()
    labels[1, 2:] = -100
    result = prune(make_model("t5"), "2:4", "wanda", [{"input_ids": batch["input_ids"], "labels": labels}])
    tokens = {layer.tokens for layer in result.layers if layer.name.startswith("decoder") and layer.role == "query"}
    assert tokens == {int((labels != -100).sum())} == {8}


def test_a_mask_of_pairs_of_positions_tells_no_padding():
    assert token_masks({"attention_mask": torch.ones(2, 1, 3, 3)}, two_stacks=False) == (None, None)
    x = torch.randn(2, 3, 4)
    rows, without_padding = token_rows(x, torch.tensor([[1, 0, 0, 0, 0]]).bool())
    assert len(rows) == 6 and not without_padding
