"""Blocks that are read when they are computed: a model larger than memory gives the same bits as one in memory."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nxm_hf import prune, pruners, verify
from nxm_hf.pruning.result import PruningResult
from nxm_hf.pruning.streamed_blocks import StreamedBlocks
from nxm_hf.storage.model_files import load_model
from nxm_hf.storage.weight_files import WeightFiles
from tests.support.model_types import MODEL_TYPES
from tests.support.models import assert_equal_weights, make_batches, make_model

CPU = torch.device("cpu")
FAMILIES = ("bert", "gpt2", "llama", "t5", "albert", "opt", "vit")


def saved(name: str, folder, dtype=None):
    """A model in a directory with several weight files."""
    model = make_model(name)
    if dtype is not None:
        model.to(dtype)
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


def weights(folder) -> dict[str, torch.Tensor]:
    with WeightFiles(folder) as files:
        return {name: files[name].clone() for names in files.shards.values() for name in names}


def assert_as_in_memory(name, folder, out, pattern="2:4", method=None, batches=None, **options):
    """Pruning a directory writes what pruning its model in memory and saving that does."""
    result = prune(folder, pattern, method, batches, out=out, **options)
    model = load_model(folder)
    expected = prune(model, pattern, method, batches, **options)
    assert_equal_weights(load_model(out), model)
    model.save_pretrained(out.with_name("by_hand"), max_shard_size="20KB")
    theirs, ours = weights(out.with_name("by_hand")), weights(out)
    assert theirs.keys() == ours.keys() and all(theirs[key].dtype == ours[key].dtype for key in ours)
    assert (out / "config.json").read_text() == (out.with_name("by_hand") / "config.json").read_text()
    assert result.layers == expected.layers and result.blocks == expected.blocks and result.scores == expected.scores
    assert verify(out, pattern).ok and not list(out.parent.glob(".*"))
    return result


@pytest.mark.parametrize("method", pruners.names())
def test_every_method_gives_the_bits_of_pruning_in_memory(method, tmp_path):
    saved("llama", tmp_path / "dense")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 2
    assert_as_in_memory("llama", tmp_path / "dense", tmp_path / "out", method=method, batches=make_batches("llama"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_model_gives_the_bits_of_pruning_in_memory(name, tmp_path):
    saved(name, tmp_path / "dense")
    assert_as_in_memory(name, tmp_path / "dense", tmp_path / "out", method="wanda", batches=make_batches(name))


@pytest.mark.parametrize("kind", [kind for kind in MODEL_TYPES if kind.name in ("mixtral", "swin")], ids=str)
def test_weights_that_are_saved_in_pieces_or_under_other_names_keep_them(kind, tmp_path):
    kind.model(0).save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    assert_as_in_memory(kind.name, tmp_path / "dense", tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"inputs": "dense"}, {"reconstruct": {"steps": 2}}, {"reconstruct": {"steps": 2}, "inputs": "dense"}]
)
def test_dense_inputs_and_reconstruction_give_the_same_bits_too(options, tmp_path):
    saved("llama", tmp_path / "dense", torch.bfloat16)
    batches = make_batches("llama")
    assert_as_in_memory("llama", tmp_path / "dense", tmp_path / "out", method="sparsegpt", batches=batches, **options)


def test_magnitude_reads_and_writes_without_keeping_finished_blocks(tmp_path):
    saved("gpt2", tmp_path / "dense", torch.bfloat16)
    assert_as_in_memory("gpt2", tmp_path / "dense", tmp_path / "out", "1:4")


def test_two_blocks_are_in_memory_at_most(tmp_path, monkeypatch):
    config = make_model("llama").config.to_dict() | {"num_hidden_layers": 5}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(tmp_path / "dense")
    most, load = [], StreamedBlocks.load

    def counting(self, number):
        load(self, number)
        real = [p for part in self._parameters.values() for p in part.values() if p.stride() and any(p.stride())]
        most.append(len(real) / len(self._parameters[0]))

    monkeypatch.setattr(StreamedBlocks, "load", counting)
    prune(tmp_path / "dense", "2:4", "wanda", make_batches("llama"), out=tmp_path / "out")
    assert max(most) == 2 and len(most) > 10


def test_a_block_is_read_when_it_is_computed_and_is_nan_before(tmp_path):
    model = saved("llama", tmp_path / "dense").eval()
    batch = make_batches("llama")[0]
    again = load_model(tmp_path / "dense").eval()
    blocks = StreamedBlocks.of(again, tmp_path / "dense", CPU)
    with torch.no_grad():
        assert again(**batch).logits.isnan().all()
        for _ in range(2):
            with blocks.read_when_computed():
                assert torch.equal(again(**batch).logits, model(**batch).logits)
        blocks.forget()
        assert again(**batch).logits.isnan().all()
    assert not any("forward" in vars(module) for module in again.modules())


def test_a_pruned_block_is_pruned_whenever_it_is_read_again(tmp_path):
    saved("llama", tmp_path / "dense")
    model = load_model(tmp_path / "dense")
    blocks = StreamedBlocks.of(model, tmp_path / "dense", CPU, torch.bfloat16)
    weight = model.model.layers[0].mlp.up_proj.weight
    blocks.finished(0, lambda: weight.data.zero_())
    blocks.load(0)
    assert weight.dtype == torch.bfloat16 and not weight.any() and blocks.holds(0)
    blocks.forget()
    assert weight.isnan().all() and not blocks.holds(0)
    blocks.load(0)
    assert not weight.any()


def test_files_that_lack_a_tensor_are_not_streamed(tmp_path):
    saved("bert", tmp_path / "dense")
    model = load_model(tmp_path / "dense")
    file = next(tmp_path.glob("dense/*.safetensors"))
    content = load_file(file)
    content.pop(next(iter(content)))
    save_file(content, file, metadata={"format": "pt"})
    assert StreamedBlocks.of(model, tmp_path / "dense", CPU) is None
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_a_job_that_was_stopped_goes_on_after_the_last_finished_block(tmp_path, monkeypatch):
    saved("llama", tmp_path / "dense")
    arguments = (tmp_path / "dense", "2:4", "sparsegpt", make_batches("llama"))
    prune(*arguments, out=tmp_path / "unbroken", report=False)
    begun, call = [], pruners.SparseGPT.__call__

    def stopping(self, *inputs):
        begun.append(inputs)
        if len(begun) == 9:  # in the second of two blocks with seven layers
            raise KeyboardInterrupt
        return call(self, *inputs)

    monkeypatch.setattr(pruners.SparseGPT, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        prune(*arguments, out=tmp_path / "out", report=False)
    assert not (tmp_path / "out").exists()
    prune(*arguments, out=tmp_path / "out", report=False)
    assert len(begun) == 9 + 7
    assert_equal_weights(load_model(tmp_path / "out"), load_model(tmp_path / "unbroken"))


def test_a_nan_in_the_files_is_named_before_anything_is_written(tmp_path):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp.up_proj holds 1 NaN"):
        prune(tmp_path / "dense", "2:4", "magnitude", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_and_out_go_together_and_nothing_else(tmp_path):
    model = saved("bert", tmp_path / "dense")
    with pytest.raises(TypeError, match=r"out=.*nxm prune"):
        prune(tmp_path / "dense")
    with pytest.raises(TypeError, match=r"Leave out= away, and write model.save_pretrained\(out\)"):
        prune(model, out=tmp_path / "out")
    with pytest.raises(ValueError, match="write include="):
        prune(tmp_path / "dense", targets="ffn", out=tmp_path / "out")
    prune(tmp_path / "dense", "2:4", pruners.Magnitude(), out=tmp_path / "out")
    assert PruningResult.read(tmp_path / "out").method == "magnitude"
    with pytest.raises(ValueError, match="is there already"):
        prune(tmp_path / "dense", out=tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
