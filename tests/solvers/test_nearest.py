"""Masks of nearest weights against every mask of small tiles, and against SciPy's linear programs on larger ones."""

from contextlib import nullcontext
from functools import cache
from itertools import combinations

import pytest
import torch

from nxm_hf.patterns import Block, Dense, Transposable, Unstructured, parse
from nxm_hf.solvers import base, nearest, reference_only
from nxm_hf.solvers.transposable_enumeration import every_tile
from tests.support.scores import (
    EXTREMES,
    INF,
    assert_stays_on_device,
    by_linear_programme,
    distributions,
    seeded,
    tiles_of,
)

torch.set_num_threads(1)
ROUNDING = 1e-5  # of a squared distance

# The scales that squares in the same type would not survive: fp32 ends at 3e38, fp16 at 65504.
SCALED = [(torch.float64, 1e-200), (torch.float64, 1e200), (torch.float32, 1e-30), (torch.float32, 1e30)]
SCALED += [(torch.float32, 1e-41), (torch.bfloat16, 1e-30), (torch.float16, 1e-4), (torch.float16, 4e3)]
TEXTS = ["2:4", "3:5", "1:4", "unstructured:0.3", "block:2:0.5", "block:2x2:0.4", "block:1x2:0.6", "dense"]
TEXTS += [f"{n}:{m}-transposable" for n, m in ((1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4))]


@cache
def every_mask(pattern, shape):
    """Return all masks of a weight of a few entries: (masks, height, width)."""
    height, width = shape
    if isinstance(pattern, Transposable):
        assert shape == (pattern.m, pattern.m)
        rows = [[column in row for column in range(width)] for tile in every_tile(pattern.n, pattern.m) for row in tile]
        return torch.tensor(rows).view(-1, height, width)
    if isinstance(pattern, Dense):
        return torch.ones(1, height, width, dtype=torch.bool)
    rows, columns = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (1, 1)
    units = height * width // (rows * columns)
    whole = isinstance(pattern, (Block, Unstructured))
    group, kept = (units, pattern.kept(shape) // (rows * columns)) if whole else (pattern.m, pattern.n)
    choices = torch.tensor([[i in chosen for i in range(group)] for chosen in combinations(range(group), kept)])
    masks = choices
    for _ in range(units // group - 1):
        masks = torch.cat([masks.repeat_interleave(len(choices), 0), choices.repeat(len(masks), 1)], 1)
    masks = masks.view(-1, height // rows, width // columns)
    return masks.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def shape_of(pattern):
    if isinstance(pattern, Transposable):
        return pattern.m, pattern.m
    return (2, getattr(pattern, "m", 6)) if not isinstance(pattern, Block) else (4, 6)


def least_distance(weight, pattern):
    """Return the least squared distance over all masks."""
    pruned = ~every_mask(pattern, weight.shape)
    return float((weight.double().square() * pruned).sum((1, 2)).min())


def distance(weight, pattern):
    return float((weight.double() - pattern.project(weight).double()).square().sum())


@pytest.mark.parametrize("text", TEXTS)
def test_no_mask_of_the_pattern_is_nearer_than_the_projection(text):
    pattern = parse(text)
    for seed in range(40):
        weight = seeded(*shape_of(pattern), seed=seed)
        assert distance(weight, pattern) <= least_distance(weight, pattern) * (1 + ROUNDING)
        assert distance(weight, pattern) >= least_distance(weight, pattern) * (1 - ROUNDING)


@pytest.mark.parametrize(("dtype", "scale"), SCALED, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_the_scale_of_a_weight_makes_no_difference(text, dtype, scale):
    pattern = parse(text)
    for seed in range(10):
        # Whole numbers keep their ratios at every scale that is a power of two.
        whole = torch.randint(-8, 9, shape_of(pattern), generator=torch.Generator().manual_seed(seed)).double()
        power = 2.0 ** round(float(torch.tensor(scale, dtype=torch.float64).log2()))
        weight = (whole * power).to(dtype)
        assert torch.equal(weight.double() / power, whole)
        assert torch.equal(pattern.nearest(weight), pattern.nearest(whole))
        assert distance(whole, pattern) == pytest.approx(least_distance(whole, pattern), rel=1e-9)


@pytest.mark.parametrize("text", [text for text in TEXTS if "transposable" in text])
def test_of_whole_numbers_the_nearest_mask_is_that_of_their_squares_also_in_a_tie(text):
    """Squares are scaled by powers of two alone, so equal sums of them stay equal."""
    pattern = parse(text)
    for seed in range(40):
        noise = torch.Generator().manual_seed(seed)
        weight = torch.randint(2, 8, (2 * pattern.m, 4 * pattern.m), generator=noise).float()  # 7 is no power of two
        assert torch.equal(pattern.nearest(weight), pattern.mask(weight.square()))


@pytest.mark.parametrize(("dtype", "scale"), SCALED, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_the_signs_of_a_weight_make_no_difference_at_any_scale_or_beside_an_infinity(text, dtype, scale):
    pattern = parse(text)
    for seed in range(2):
        weight = (seeded(*shape_of(pattern), seed=seed).double() * scale).to(dtype).abs()
        for largest in (weight[0, 1].item(), INF):
            weight[0, 1] = largest
            mixed = weight * seeded(*shape_of(pattern), seed=seed + 9).sign().to(dtype)
            expected = pattern.nearest(weight)
            assert torch.equal(pattern.nearest(-weight), expected) and torch.equal(pattern.nearest(mixed), expected)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tiles_that_differ_in_scale_are_each_solved_to_the_last_digit(text, dtype):
    pattern = parse(text)
    if not isinstance(pattern, Transposable):
        pytest.skip("tiles are independent in transposable patterns only")
    scales = (1e-30, 1.0, 1e-18, 1e18)
    weight = torch.cat([seeded(pattern.m, pattern.m, dtype=dtype, seed=i) * s for i, s in enumerate(scales)], 1)
    for tile, mask in zip(weight.split(pattern.m, 1), pattern.nearest(weight).split(pattern.m, 1), strict=True):
        lost = float((tile.double().square() * ~mask).sum())
        assert lost <= least_distance(tile, pattern) * (1 + ROUNDING)


@pytest.mark.parametrize("outlier", [30.0, 1e3, 1e5, 1e8, 1e15])
@pytest.mark.parametrize("text", TEXTS)
def test_beside_outliers_the_other_weights_are_still_chosen_by_their_squares(text, outlier):
    pattern = parse(text)
    for seed in range(10):
        weight = seeded(*shape_of(pattern), seed=seed)
        weight[0, 1] *= outlier
        weight[-1, 0] *= -(outlier**0.5)
        assert distance(weight, pattern) <= least_distance(weight, pattern) * (1 + ROUNDING)


@pytest.mark.parametrize("text", ["2:4-transposable", "3:5-transposable", "4:8-transposable", "8:16-transposable"])
@pytest.mark.parametrize("kind", distributions(16, 16))
def test_no_corner_of_the_polytope_is_nearer_than_the_projection(text, kind):
    pattern = parse(text)
    side = 16 // pattern.m * pattern.m
    weight = distributions(side, side)[kind]
    if not weight.is_floating_point():
        weight = weight.double()
    # Squares of other sizes than 1 are no numbers for a linear program.
    squares = (weight.double() / weight.double().abs().max().clamp_min(1e-300)).square()
    kept = squares * pattern.nearest(weight)
    for tile, own in zip(tiles_of(squares, pattern.m), tiles_of(kept, pattern.m), strict=True):
        best = by_linear_programme(tile, pattern.n, exactly=True)
        assert float(own.sum()) >= best - 1e-6 * float(tile.sum())


@pytest.mark.parametrize("text", ["2:4-transposable", "3:5-transposable", "4:8-transposable"])
@pytest.mark.parametrize("outlier", [1.0, 100.0, 1e6])
def test_kernels_and_torch_find_weights_of_one_distance(text, outlier):
    """Weights that are large enough for compiled kernels, where those exist."""
    pattern = parse(text)
    weight = seeded(320, 320)
    weight[::7, ::5] *= outlier
    with reference_only():
        expected = pattern.project(weight)
    lost, least = ((weight - found).double().square().sum() for found in (pattern.project(weight), expected))
    assert float(lost) == pytest.approx(float(least), rel=ROUNDING)
    assert pattern.violations(expected) == 0


@pytest.mark.parametrize("power", [5, 9])
@pytest.mark.parametrize("seed", range(3, 8))
def test_some_tiles_that_a_kernel_leaves_have_the_masks_that_they_have_in_whole_strips(power, seed, monkeypatch):
    """These tiles have heavy tails. torch adds up some columns of a strip in another order than others."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)  # if there are kernels, they solve single tiles, too
    generator = torch.Generator().manual_seed(seed)
    weight, pattern = torch.randn(256, 1016, generator=generator), parse("4:8-transposable")
    heavy = (torch.rand(32, 127, generator=generator) < 0.2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    weight = torch.where(heavy, weight**power, weight)
    whole = [nearest._nearest_strips(part, pattern) for part in nearest._parts(weight, pattern)]
    assert torch.equal(pattern.nearest(weight), torch.cat(whole).view(weight.shape))


@pytest.mark.parametrize("text", ["2:4-transposable", "block:2x2:0.4"])
def test_infinities_are_kept_first_and_the_rest_by_squares(text):
    pattern = parse(text)
    for seed in range(10):
        weight = seeded(4, 4, seed=seed)
        weight[1, 2], weight[1, 1] = INF, -INF
        mask = pattern.nearest(weight)
        finite = weight.masked_fill(weight.isinf(), 0).double()
        masks = every_mask(pattern, (4, 4))
        masks = masks[masks[:, 1, 2] & masks[:, 1, 1]]
        least = (finite.square() * ~masks).sum((1, 2)).min()
        assert mask[1, 2] and mask[1, 1]
        assert float((finite.square() * ~mask).sum()) <= float(least) * (1 + ROUNDING)
    everything = torch.tensor(EXTREMES + [1.0] * 5).view(4, 4)
    assert int(pattern.nearest(everything).sum()) == pattern.kept((4, 4))


@pytest.mark.parametrize("part", [100, 400, 2**20])
def test_parts_of_a_weight_make_no_difference(part, monkeypatch):
    monkeypatch.setattr(nearest, "PART", part)
    for shape in ((16, 24), (4, 480), (3, 8, 16)):
        weight = seeded(*shape)
        weight.view(-1)[::17] *= 1e4
        for text in ("2:4-transposable", "1:2-transposable"):
            pattern = parse(text)
            tiles = weight.unflatten(-1, (-1, pattern.m)).unflatten(-3, (-1, pattern.m)).transpose(-2, -3)
            alone = torch.stack([pattern.nearest(tile) for tile in tiles.reshape(-1, pattern.m, pattern.m)])
            joined = alone.view(tiles.shape).transpose(-2, -3).reshape(shape)
            assert torch.equal(pattern.nearest(weight), joined)


@pytest.mark.parametrize(("m", "across", "share"), [(8, 13, 0.3), (16, 13, 0.02), (8, 24, 1.0), (32, 5, 0.5)])
def test_columns_of_parts_of_strips_have_the_sums_of_whole_strips_to_the_last_bit(m, across, share):
    """The order in which torch adds up a column depends on where it stands."""
    strips = seeded(20, m, m * across).abs() ** 4
    places = torch.rand(20, across, generator=torch.Generator().manual_seed(m)) <= share
    places[3, -1] = True
    parts, sums = (x.unflatten(-1, (-1, m)) for x in (strips, strips.sum(1)))
    found = nearest._sums_in_place(parts.transpose(1, 2)[places], places)
    assert torch.equal(found, sums[places])


def test_the_largest_sum_of_magnitudes_is_not_the_nearest():
    tile = torch.tensor([[3.0, 2.5], [2.5, 1.0]])  # 5 for 4 in magnitude, 12.5 for 10 in squares; then 10 for 12.5
    assert parse("1:2-transposable").largest(tile).int().tolist() == [[0, 1], [1, 0]]
    tile = torch.tensor([[4.0, 2.5], [2.5, 0.5]])  # 4.5 for 5 in magnitude, 16.25 for 12.5 in squares
    assert parse("1:2-transposable").largest(tile).int().tolist() == [[0, 1], [1, 0]]
    assert parse("1:2-transposable").nearest(tile).int().tolist() == [[1, 0], [0, 1]]
    row = torch.tensor([[3.0, 0.0, 2.5, 2.5]])
    assert parse("block:2:0.5").largest(row).int().tolist() == [[1, 1, 0, 0]]
    assert parse("block:2:0.5").nearest(row).int().tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("text", ["2:4-transposable", "3:8-transposable", "block:4x4:0.5", "unstructured:0.3"])
def test_nearest_masks_stay_on_the_device_of_the_weight(text):
    weight = seeded(16, 32) * torch.logspace(-4, 4, 32)  # some tiles are refined
    for context in (nullcontext, reference_only):
        with context():
            assert_stays_on_device(lambda scores, pattern: pattern.nearest(scores), weight, parse(text))
