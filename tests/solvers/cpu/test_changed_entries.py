"""The kernels that gather: what they overwrite is held, and comes back."""

import numpy as np
import pytest
import torch

from nxm_hf.solvers import cpu

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_kernels_that_gather_write_kept_entries_hold_what_that_overwrites_and_bring_it_back(dtype, in_place):
    """Also where these are the entries of several parts."""
    kernels, limits = cpu.BACKEND.kernels, torch.iinfo(dtype)
    if not kernels.can_gather():
        pytest.skip("the kernels that gather need AVX-512")
    source, other = torch.randint(limits.min, limits.max, (2, cpu.IN_CACHE + 48), dtype=dtype)
    source[::5], source[1::5] = limits.min, 0  # -0.0 and +0.0
    mask = torch.arange(len(source)) % 3 > 0
    written = torch.where(mask & (source != limits.min), source, 0)
    out = source.clone() if in_place else torch.where(torch.arange(len(source)) % 7 > 0, other, written)
    old, looks = out.clone(), []
    changed = (old != written).numpy()

    def held():
        return np.zeros(len(old) // 8, np.uint8), np.zeros(len(old) + 16, old.numpy().dtype)

    flags, room = held()
    given = out if in_place else source
    assert kernels.keep_entries(given, mask, out, flags, room, lambda *part: looks.append(part)) == changed.sum()
    assert torch.equal(out, written) and [begin for begin, _ in looks[1:]] == [end for _, end in looks[:-1]]
    assert looks[0][0] == 0 and looks[-1][1] == out.nbytes and len(looks) == 2
    compared = held()
    assert kernels.compare_entries(old, out, *compared) == changed.sum()
    for found, gathered in ((flags, room), compared):
        assert (np.unpackbits(found, bitorder="little") == changed).all()
        assert (gathered[: changed.sum()] == old.numpy()[changed]).all()
    kernels.restore_entries(out, flags, room, same=False)
    assert torch.equal(out, old)
    room[:16] = 7
    kernels.restore_entries(out, flags, room, same=True)
    assert torch.equal(out, torch.where(torch.from_numpy(changed), 7, old))
