"""Packed moments in a file of `torch.save`: its bytes are those of dense moments, and they stay packed."""

import io
import zipfile
from weakref import ref

import pytest
import torch

from nxm_hf import AdamW, attach
from nxm_hf.engine import moments_to_save as module
from nxm_hf.engine.kept_state import MOMENTS, KeptState
from nxm_hf.engine.moments_to_save import moments_to_save
from nxm_hf.solvers import base
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.masked_adamw import can_step_kept
from tests.support.toy_training import Toy, adamw, same, train


@pytest.fixture(autouse=True)
def kernels_for_every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    if not can_step_kept():
        pytest.skip("moments of kept entries need numba and AVX-512")


def begun(pattern="2:4", kept_moments=True):
    """Return a toy that was trained for two steps, and its optimizer."""
    model = Toy()
    optimizer = AdamW(model.parameters(), lr=0.02, weight_decay=0.1, kept_moments=kept_moments)
    attach(model, optimizer, {"recipe": "asp", "pattern": pattern}, total_steps=9)
    for _ in train(model, optimizer, 0, 2):
        pass
    return model, optimizer


def are_packed(optimizer):
    return [isinstance(state, KeptState) and state.is_packed for state in optimizer.state.values()]


def saved(optimizer):
    """Return the bytes of a file with the state dict of an optimizer, without the name of the file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "unstructured:0.5", "block:4x4:0.5"])
def test_a_file_has_the_bytes_of_dense_moments_and_leaves_moments_packed(pattern):
    (_, optimizer), (_, dense) = begun(pattern), begun(pattern, kept_moments=False)
    before = are_packed(optimizer)
    with moments_to_save(optimizer):
        file = saved(optimizer)
    assert any(before) and are_packed(optimizer) == before
    assert file == saved(dense) == saved(optimizer)


def test_a_file_is_a_whole_zip_that_torch_reads_into_its_own_adamw():
    model, optimizer = begun()
    with moments_to_save(optimizer):
        file = saved(optimizer)
    assert zipfile.ZipFile(io.BytesIO(file)).testzip() is None
    other = Toy()
    plain = adamw(other, fused=True)
    plain.load_state_dict(torch.load(io.BytesIO(file), weights_only=True))
    for linear, same_linear in zip(model.linears, other.linears, strict=True):
        expected, state = optimizer.state[linear.weight], plain.state[same_linear.weight]
        assert same([state[name] for name in ("step", *MOMENTS)], [expected[name] for name in ("step", *MOMENTS)])


def test_only_one_moment_is_dense_at_a_time(monkeypatch):
    _, optimizer = begun()
    expected = 2 * sum(are_packed(optimizer))
    unpack, living, most = KeptEntries.unpack, [], []

    def watched(kept, packed):
        most.append(sum(each() is not None for each in living))
        dense = unpack(kept, packed)
        living.append(ref(dense.untyped_storage()))
        return dense

    monkeypatch.setattr(KeptEntries, "unpack", watched)
    with moments_to_save(optimizer):
        saved(optimizer)
    assert most == [0] * expected != []


def test_a_state_dict_has_dense_tensors_again_after_the_save():
    _, optimizer = begun()
    with pytest.raises(RuntimeError, match="of a test"), moments_to_save(optimizer):
        raise RuntimeError("of a test")
    assert all(
        type(state[name]) is torch.Tensor for state in optimizer.state_dict()["state"].values() for name in state
    )
    assert not optimizer._optimizer_state_dict_post_hooks


def test_a_hook_that_reads_moments_or_changes_the_form_is_respected():
    for hook in (lambda _, state: {"mine": 1}, lambda _, state: {**state, "state": {0: dict(state["state"][0])}}):
        (_, optimizer), (_, dense) = begun(), begun(kept_moments=False)
        for each in (optimizer, dense):
            each.register_state_dict_post_hook(hook)
        with moments_to_save(optimizer):
            assert saved(optimizer) == saved(dense)


def test_other_optimizers_and_versions_of_torch_save_as_they_did(monkeypatch):
    _, optimizer = begun()
    monkeypatch.setattr(module, "_can_be_saved", lambda: False)
    for each in (adamw(Toy()), None, optimizer):
        with moments_to_save(each):
            tensors = [] if each is None else [*each.state_dict()["state"].values()]
    assert all(type(value) is torch.Tensor for state in tensors for value in state.values())


def test_a_torch_that_writes_other_bytes_is_noticed(monkeypatch):
    assert module._can_be_saved()
    for change in (
        lambda: monkeypatch.setattr(module._StorageToSave, "cpu", lambda storage: torch.UntypedStorage(16)),
        lambda: monkeypatch.delattr(torch.storage, "TypedStorage"),
    ):
        module._can_be_saved.cache_clear()
        change()
        try:
            assert not module._can_be_saved()
        finally:
            monkeypatch.undo()
            module._can_be_saved.cache_clear()
