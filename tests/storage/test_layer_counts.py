"""Counts of weights whose bytes come in blocks: those of the whole weight, wherever a block ends in it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nxm_hf import prune, save_packed, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.patterns import NM, parse
from nxm_hf.solvers import cpu, entry_counts, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.entry_counts import PartCounter, count_entries
from nxm_hf.storage import file_blocks
from nxm_hf.storage.file_blocks import BLOCK, read_in_blocks
from nxm_hf.storage.layer_counts import LayerCounts, Span, SpanCounts
from nxm_hf.storage.manifest import MANIFEST_FILE, read_manifest, write_manifest
from nxm_hf.storage.model_files import skeleton
from tests.support.models import MODELS, make_bert

PATTERNS = ((2, 4), (1, 2), (3, 5), (16, 32), (200, 256))
UNUSUAL = (0.0, -0.0, float("nan"), -float("nan"), float("inf"), 1.0, 2.0)


def numbers(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Return zeros and numbers; a fiftieth is unusual."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-1, 2, (count,), generator=generator).to(dtype)
    weight[weight == 0] = 0.0  # without a sign
    if count:
        places = torch.randint(count, (count // 50,), generator=generator)
        weight[places] = torch.tensor(UNUSUAL, dtype=dtype)[torch.arange(len(places)) % len(UNUSUAL)]
    return weight


def counted(path, weights: list[tuple[int, Tensor]], n: int, m: int) -> list:
    """Return the counts of weights that stand at these bytes of a file."""
    content = bytearray(3 * BLOCK + 64)
    spans = []
    for key, (begin, weight) in enumerate(weights):
        raw = weight.view(torch.uint8).numpy().tobytes()
        content[begin : begin + len(raw)] = raw
        counter = PartCounter(weight.dtype, n, m, 0)
        name = chr(ord("z") - key)  # the order of names is not that of places
        spans.append(Span(name, begin, begin + len(raw), 16 * m * weight.dtype.itemsize, counter))
    path.write_bytes(content)
    counts = SpanCounts(spans[::-1])
    read_in_blocks([(path, len(content), [counts])])
    return [counts.get(span.key) for span in spans]


@pytest.fixture(params=["numpy", "kernel"])
def by(request):
    """Count with NumPy and with kernels, which give the same."""
    if request.param == "numpy":
        with reference_only():
            yield request.param
        return
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    assert cpu.BACKEND.works()
    yield request.param


@pytest.mark.parametrize("n, m", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_has_its_counts_wherever_blocks_end_in_it(dtype, n, m, by, tmp_path, monkeypatch):
    """Each block is a chunk here, so several threads count one weight, and none remembers the block before."""
    monkeypatch.setattr(file_blocks, "CHUNK", BLOCK)
    size = dtype.itemsize
    for shift in range(-m * size, m * size + 1, max(size, m * size // 4)):
        begin = (BLOCK + shift) // size * size
        first = numbers(dtype, 40 * m, seed=m)  # ends within some groups of the edge
        second = numbers(dtype, BLOCK // size // m * m + 7 * m, seed=m + 1)  # begins at the edge, and crosses the next
        weights = [(begin - first.nbytes, first), (begin, second)]
        assert counted(tmp_path / "file", weights, n, m) == [count_entries(weight, n, m) for _, weight in weights]


@pytest.mark.parametrize("value", UNUSUAL[:4], ids=str)
@pytest.mark.parametrize("at", ["last of a block", "first of a block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_unusual_entry_at_the_edge_of_a_block_is_counted_once(dtype, at, value, by, tmp_path):
    weight = torch.ones(3 * BLOCK // dtype.itemsize // 4 * 4 - 64, dtype=dtype)
    weight.view(-1, 4)[:, 1:3] = 0.0
    begin = 16
    edge = (2 * BLOCK - begin) // dtype.itemsize
    weight[edge - 1 if at == "last of a block" else edge] = value
    (counts,) = counted(tmp_path / "file", [(begin, weight)], 2, 4)
    assert counts == count_entries(weight, 2, 4)
    assert counts.negative_zeros == (str(value) == "-0.0") and counts.nans == (value != value)


def test_a_group_that_two_blocks_share_is_one_group(by, tmp_path):
    """Half of it would keep its pattern."""
    weight = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(BLOCK // 8)
    begin = BLOCK % 16 + 8  # so that two entries of a group stand before the edge
    group = (BLOCK - begin) // 16
    weight.view(-1, 4)[group] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    (counts,) = counted(tmp_path / "file", [(begin, weight)], 2, 4)
    assert (BLOCK - begin) % 16 == 8 and counts.violations == 1 and counts == count_entries(weight, 2, 4)


def test_weights_without_entries_have_counts_and_those_that_end_beyond_the_file_have_none(tmp_path):
    empty, weight = torch.zeros(0), torch.ones(8)
    assert counted(tmp_path / "file", [(8, empty), (8, weight), (BLOCK, empty)], 2, 4) == [
        count_entries(empty, 2, 4),
        count_entries(weight, 2, 4),
        count_entries(empty, 2, 4),
    ]
    crossing = BLOCK - 16  # a weight that a block divides, and one without entries at its beginning
    assert counted(tmp_path / "file", [(crossing, empty), (crossing, weight)], 2, 4)[1] == count_entries(weight, 2, 4)
    beyond = SpanCounts([Span("a", 3 * BLOCK, 3 * BLOCK + 256, 256, PartCounter(torch.float32, 2, 4, 0))])
    read_in_blocks([(tmp_path / "file", (tmp_path / "file").stat().st_size, [beyond])])
    assert beyond.get("a") is None and beyond.get("b") is None


@pytest.mark.parametrize("entries, imports", [(10, 0), (11, 1)])
def test_many_entries_are_worth_the_import_of_a_compiler(entries, imports, monkeypatch):
    loads = []
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: loads.append(None), groups_at_once=16))
    monkeypatch.setattr(entry_counts, "IMPORT_ABOVE_IN_ALL", 10)
    PartCounter(torch.float32, 2, 4, entries)
    assert len(loads) == imports


# -- in a directory ------------------------------------------------------------------------------------------------


def both_ways(folder):
    """Return what is found in a directory with its manifest, whose files are read in blocks, and without it."""
    bare = shutil.copytree(folder, folder.parent / "bare", ignore=shutil.ignore_patterns(MANIFEST_FILE))
    found = verify(folder), replace(verify(bare), note="")  # the note says that there is no manifest
    shutil.rmtree(bare)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.5", "2:4-transposable"])
def test_a_directory_is_verified_alike_with_a_manifest_and_without_one(name, pattern, tmp_path):
    folder = tmp_path / "model"
    model = MODELS[name]()
    try:
        prune(model, pattern)
    except ValueError:
        pytest.skip(f"{pattern} does not fit this model")
    with torch.no_grad():
        for value, (_, weight) in zip(UNUSUAL[:4], list(model.named_parameters())[::-1], strict=False):
            weight.view(-1)[0] = value
    model.save_pretrained(folder, max_shard_size="20KB" if name in ("bert", "gpt2") else "1GB")
    write_manifest(folder)
    with_manifest, without = both_ways(folder)
    assert with_manifest == without and with_manifest.layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_layers_of_all_but_wide_types_are_counted_while_files_are_read(dtype, tmp_path):
    prune(model := make_bert().to(dtype), "2:4")
    model.save_pretrained(tmp_path / "model")
    write_manifest(tmp_path / "model")
    empty = skeleton(tmp_path / "model")
    layers = [(layer, NM(2, 4)) for layer in find_layers(empty)]
    counts = LayerCounts(tmp_path / "model", layers)
    assert all(counts.get(layer) is None for layer, _ in layers)
    paths = {tmp_path / "model" / name: readers for name, readers in counts.by_file.items()}
    read_in_blocks((path, path.stat().st_size, readers) for path, readers in paths.items())
    expected = None if dtype == torch.float64 else 0
    for layer, pattern in layers:
        found = counts.get(layer)
        weight = model.get_submodule(layer.name).weight
        assert found == (None if expected is None else count_entries(weight, pattern.n, pattern.m))
    one, other = both_ways(tmp_path / "model")
    assert one == other and one.ok


@pytest.mark.parametrize(("pattern", "dtype"), [("2:4", torch.bfloat16), ("16:32", torch.float32)])
def test_layers_that_are_longer_than_a_block_are_counted_while_files_are_read(pattern, dtype, tmp_path):
    model = make_bert(num_hidden_layers=1, intermediate_size=BLOCK // 1024 * 32).to(dtype)
    layers = [(layer, parse(pattern)) for layer in find_layers(model)]
    for layer, _ in layers:
        layer.weight.data.clamp_(min=0.0)
    model.save_pretrained(tmp_path)
    assert max(layer.weight.nbytes for layer, _ in layers) > 1.5 * BLOCK
    counts = LayerCounts(tmp_path, layers)
    read_in_blocks((tmp_path / name, (tmp_path / name).stat().st_size, found) for name, found in counts.by_file.items())
    for layer, (n, m) in ((layer, map(int, pattern.split(":"))) for layer, _ in layers):
        assert counts.get(layer) == count_entries(layer.weight, n, m)


@pytest.mark.parametrize("change", ["pattern", "dtype", "shape", "absent", "packed", "odd", "along rows", "unaligned"])
def test_what_does_not_stand_in_the_files_as_it_is_counted_has_no_counts(change, tmp_path):
    folder = tmp_path / "model"
    prune(model := make_bert(), "2:4")
    (save_packed if change == "packed" else type(model).save_pretrained)(model, folder)
    layers = [(layer, parse("2:4")) for layer in find_layers(skeleton(folder))]
    first, key = layers[0][0], layers[0][0].key
    tensors = load_file(folder / "model.safetensors")
    if change == "pattern":
        layers[0] = first, parse("block:4:0.5")
    if change == "odd":
        layers[0] = first, parse("3:5")
    if change == "along rows":  # 64 rows hold such groups, and 32 columns do not
        first = next(layer for layer, _ in layers if layer.shape == (64, 32))
        layers = [(first, NM(3, 64)), *layers[:1]]
    if change == "dtype":
        tensors[key] = tensors[key].double()
    if change == "shape":
        tensors[key] = tensors[key][:-1].contiguous()
    if change == "absent":
        del tensors[key]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if change == "unaligned":  # a header with one byte more, as other programs may write it
        raw = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = raw[8 : 8 + size] + b" "
        (folder / "model.safetensors").write_bytes((size + 1).to_bytes(8, "little") + header + raw[8 + size :])
        assert verify(folder, "2:4").ok
    counts = LayerCounts(folder, layers)
    paths = {folder / name: readers for name, readers in counts.by_file.items()}
    read_in_blocks((path, path.stat().st_size, readers) for path, readers in paths.items())
    assert counts.get(first) is None
    assert (counts.get(layers[1][0]) is None) == (change in ("absent", "packed", "unaligned"))


def test_of_two_files_with_one_weight_the_last_is_counted_as_it_is_read(tmp_path):
    """Both are in the index; reading takes the last of them too."""
    folder = tmp_path / "model"
    prune(model := make_bert(), "2:4")
    model.save_pretrained(folder, max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    key = "bert.encoder.layer.0.attention.self.query.weight"
    for name in (files[0], files[-1]):
        tensors = load_file(folder / name)
        tensors[key] = torch.ones(32, 32) if name == files[-1] else torch.zeros(32, 32)
        save_file(tensors, folder / name, {"format": "pt"})
    write_manifest(folder)
    one, other = both_ways(folder)
    assert one == other and [layer.violations for layer in one.layers if layer.violations] == [256]


def test_a_file_that_has_changed_is_named_and_its_layers_are_looked_at(tmp_path):
    folder = tmp_path / "model"
    prune(model := make_bert(), "2:4")
    model.save_pretrained(folder)
    write_manifest(folder)
    assert MANIFEST_FILE not in read_manifest(folder)
    tensors = load_file(folder / "model.safetensors")
    key = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[key][0, :4] = -0.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = verify(folder)
    assert found.changed == (("model.safetensors", "has changed since it was saved"),)
    assert [layer.negative_zeros for layer in found.layers if layer.problems] == [4]
    tensors["more"] = torch.zeros(5)  # another size, so that the manifest does not have it read
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = verify(folder)
    assert "instead of" in found.changed[0][1]
    assert [layer.negative_zeros for layer in found.layers if layer.problems] == [4]
