"""The laws of patterns, held against every pattern of the registry."""

import dataclasses

import pytest
import torch

from nxm_hf.patterns import NM, PATTERNS, Block, Dense, Pattern, Transposable, Unstructured, parse

torch.set_num_threads(1)

EXAMPLES = [text for kind in PATTERNS for text in kind.examples]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPE = (2, 40, 120)  # holds every example
each_pattern = pytest.mark.parametrize("pattern", list(map(parse, EXAMPLES)), ids=EXAMPLES)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture
def weight():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def tied(dtype=torch.float32):
    """Small integers of both signs: ties everywhere, many zeros, and -0.0 among them."""
    values = torch.randint(-2, 3, SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    return torch.where(torch.arange(SHAPE[-1]) % 3 == 0, -values, values)


def random_mask(pattern, seed):
    """Some mask of the pattern: the best one for random scores."""
    return pattern.mask(torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)))


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def test_the_registry_is_found():
    assert len(PATTERNS) >= 5 and len(EXAMPLES) >= 14
    assert all(kind.examples for kind in PATTERNS) and len({kind.kind for kind in PATTERNS}) == len(PATTERNS)


# Laws


@each_pattern
@each_float
def test_a_mask_keeps_the_exact_number_and_breaks_nothing(pattern, dtype, weight):
    for scores in (weight.to(dtype), tied(dtype), torch.zeros(SHAPE, dtype=dtype)):
        mask = pattern.mask(scores)
        assert (mask.dtype, mask.shape) == (torch.bool, scores.shape)
        assert int(mask.sum()) == pattern.kept(SHAPE)
        assert pattern.violations(mask) == 0


@each_pattern
def test_the_kept_fraction_is_the_density(pattern):
    total = torch.Size(SHAPE).numel()
    assert pattern.kept(SHAPE) / total == pytest.approx(pattern.density, abs=0.01)


@each_pattern
def test_no_random_mask_keeps_more(pattern, weight):
    """A block is worth its highest score, so that is what may not grow."""

    def value(mask):
        kept = weight.abs().masked_fill(~mask, 0).double()
        return float(pattern.tiles(kept).amax((-3, -1)).sum() if isinstance(pattern, Block) else kept.sum())

    best = value(pattern.mask(weight.abs()))
    assert all(value(random_mask(pattern, seed)) <= best for seed in range(20))


@each_pattern
@each_float
def test_projecting_twice_changes_nothing(pattern, dtype, weight):
    for start in (weight.to(dtype), tied(dtype)):
        once = pattern.project(start)
        assert same_bits(pattern.project(once), once)
        assert pattern.violations(once) == 0


@each_pattern
@each_float
def test_a_projection_is_written_where_it_is_asked_for(pattern, dtype, weight):
    for start in (weight.to(dtype), tied(dtype), torch.full(SHAPE, -0.0, dtype=dtype)):
        expected, other = pattern.project(start), torch.full_like(start, 7.0)
        assert pattern.project(start, out=other).data_ptr() == other.data_ptr()
        assert same_bits(other, expected)
        assert pattern.project(start, out=start).data_ptr() == start.data_ptr()
        assert same_bits(start, expected)


@each_pattern
def test_a_projection_is_not_written_where_it_does_not_fit(pattern, weight):
    for out in (weight.half(), weight[:1], torch.empty(*SHAPE, 2)[..., 0]):
        with pytest.raises(ValueError, match=r"out is torch.float.*needs a contiguous torch.float32 of shape"):
            pattern.project(weight, out=out)


@each_pattern
@each_float
def test_projecting_keeps_values_and_dtype_and_leaves_no_negative_zero(pattern, dtype, weight):
    for start in (-weight.to(dtype), tied(dtype), torch.full(SHAPE, -0.0, dtype=dtype)):
        result = pattern.project(start)
        mask = pattern.nearest(start)
        assert int(mask.sum()) == pattern.kept(SHAPE) and pattern.violations(mask) == 0
        assert result.dtype == dtype
        assert torch.equal(result[mask], start[mask])
        assert not result[~mask].any() and not result[result == 0].signbit().any()


@each_pattern
@each_float
def test_no_other_weight_of_the_pattern_is_nearer(pattern, dtype, weight):
    for start in (weight.to(dtype), tied(dtype), (weight**5 / 1000).to(dtype)):
        squares = start.double().square()
        least = float((squares * ~pattern.nearest(start)).sum())
        others = [pattern.largest(start), *(random_mask(pattern, seed) for seed in range(10))]
        assert all(least <= float((squares * ~mask).sum()) * (1 + 1e-6) for mask in others)


@each_pattern
def test_only_sums_over_tiles_and_blocks_tell_magnitudes_from_squares(pattern, weight):
    sums = isinstance(pattern, (Transposable, Block))
    assert torch.equal(pattern.nearest(weight), pattern.largest(weight)) != sums
    for start in (tied(), weight * 1e-30, weight.half(), torch.full(SHAPE, -0.0)):
        assert sums or torch.equal(pattern.nearest(start), pattern.largest(start))


@each_pattern
def test_texts_and_reprs_read_back(pattern):
    assert parse(str(pattern)) == pattern and parse(f" {str(pattern).upper()} ") == pattern
    assert eval(repr(pattern)) == pattern
    assert parse(pattern) is pattern


@pytest.mark.parametrize("text", ["\u0662:\u0664", "\uff12:4", "1" * 5000 + ":4", "4" * 10**6 + "x2"], ids=len)
def test_digits_of_other_scripts_and_endless_numbers_name_no_pattern(text):
    with pytest.raises(ValueError, match="There is no pattern") as error:
        parse(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_print_as_they_are_written(text):
    assert str(parse(text)) == text


@each_pattern
def test_patterns_are_frozen_values(pattern):
    assert hash(dataclasses.replace(pattern)) == hash(pattern)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.density = 0.1


@each_pattern
def test_layout_makes_no_difference(pattern):
    scores = tied()
    wide = torch.stack((scores, -scores), -1).flatten(-2)
    assert not wide[..., ::2].is_contiguous()
    for other in (scores.mT.contiguous().mT, wide[..., ::2], scores.flip(0).contiguous().flip(0)):
        assert torch.equal(pattern.mask(other), pattern.mask(scores))
        assert same_bits(pattern.project(other), pattern.project(scores))
        assert pattern.violations(other) == pattern.violations(scores)


@each_pattern
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.int16], ids=str)
def test_the_dtype_makes_no_difference_where_the_numbers_are_equal(pattern, dtype):
    assert torch.equal(pattern.mask(tied(dtype)), pattern.mask(tied()))


@each_pattern
def test_negative_zero_scores_as_zero(pattern):
    zeros = torch.zeros(SHAPE)
    mixed = torch.where(torch.arange(SHAPE[-1]) % 2 == 0, -zeros, zeros)
    assert torch.equal(pattern.mask(mixed), pattern.mask(zeros))


@each_pattern
def test_the_input_is_never_edited_and_may_require_grad(pattern):
    weight = tied().requires_grad_()
    before = weight.detach().clone()
    mask, result = pattern.mask(weight), pattern.project(weight)
    pattern.violations(weight)
    assert same_bits(weight.detach(), before)
    assert not mask.requires_grad and not result.requires_grad
    assert result.data_ptr() != weight.data_ptr()


@each_pattern
def test_nan_is_an_error_that_counts(pattern, weight):
    weight[0, 0, :3] = torch.nan
    with pytest.raises(ValueError, match=r"hold 3 NaN of 9600.*a mask needs numbers"):
        pattern.mask(weight)
    with pytest.raises(ValueError, match="3 NaN"):
        pattern.project(weight)


@each_pattern
@each_float
def test_infinity_is_the_largest_and_no_nan(pattern, dtype, weight):
    scores = weight.abs().to(dtype)
    scores[0, 1, 5] = scores[1, 7, 118] = torch.inf
    mask = pattern.mask(scores)
    assert mask[0, 1, 5] and mask[1, 7, 118] and int(mask.sum()) == pattern.kept(SHAPE)
    assert int(pattern.mask(torch.full(SHAPE, torch.inf, dtype=dtype)).sum()) == pattern.kept(SHAPE)
    scores[1, 0, 0] = -torch.inf
    assert int(pattern.mask(scores).sum()) == pattern.kept(SHAPE)


@each_pattern
def test_a_pruned_infinity_becomes_zero(pattern):
    weight = torch.full(SHAPE, torch.inf)
    weight[..., ::2] = -torch.inf
    result = pattern.project(weight)
    assert torch.equal(result, torch.where(pattern.mask(weight.abs()), weight, 0))
    assert int(result.count_nonzero()) == pattern.kept(SHAPE)


@each_pattern
def test_one_weight_too_many_is_a_violation(pattern, weight):
    if isinstance(pattern, Dense):
        assert pattern.violations(weight) == 0
        return
    mask = pattern.mask(weight.abs())
    one_more = (~mask).nonzero()[7]
    for extra in (1e-30, torch.nan):
        kept = weight.masked_fill(~mask, 0)
        kept[tuple(one_more)] = extra
        assert pattern.violations(kept) == (2 if isinstance(pattern, Transposable) else 1)
    mask[tuple(one_more)] = True
    assert pattern.violations(mask) > 0


@each_pattern
def test_empty_weights_are_fine(pattern):
    for shape in ((0, 40, 120), (40, 0), (0, 0)):
        assert pattern.mask(torch.empty(shape)).shape == pattern.project(torch.empty(shape)).shape == shape
        assert pattern.kept(shape) == pattern.violations(torch.empty(shape)) == 0


# Answers typed in


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("2:4", [[1, 1, 0, 0, 1, 1, 0, 0]] * 4),
        ("2:4-transposable", [[1, 1, 0, 0] * 2] * 2 + [[0, 0, 1, 1] * 2] * 2),
        ("1:4-transposable", [[1, 0, 0, 0] * 2, [0, 1, 0, 0] * 2, [0, 0, 1, 0] * 2, [0, 0, 0, 1] * 2]),
        ("unstructured:0.5", [[1] * 8] * 2 + [[0] * 8] * 2),
        ("block:2x4:0.5", [[1] * 8] * 2 + [[0] * 8] * 2),
        ("block:4:0.25", [[1] * 8] + [[0] * 8] * 3),
    ],
)
@each_float
def test_of_equal_scores_the_lowest_index_is_kept(text, mask, dtype):
    assert parse(text).mask(torch.ones(4, 8, dtype=dtype)).int().tolist() == mask


def test_two_of_four_keeps_the_vectors_of_the_specification():
    weight = torch.tensor([0.5, -0.5, 0.5, 0.1, 0, 0, 0, 0, -3, 2, -1, 0.5])
    assert NM(2, 4).mask(weight.abs()).int().tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="1 NaN"):
        NM(2, 4).mask(torch.tensor([torch.nan, 1, 2, 3]))


def test_scores_may_be_negative_and_keep_their_sign():
    assert NM(1, 4).mask(torch.tensor([-9.0, -1.0, -2.0, -3.0])).tolist() == [False, True, False, False]


def test_a_block_is_worth_its_highest_score():
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.8, 0.1, 0.4, 0.05]])
    assert Block(1, 2, 0.5).mask(scores).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_counts_are_rounded_and_never_zero():
    assert Unstructured(0.5).kept((7,)) == 4 and Unstructured(0.01).kept((3, 5)) == 1
    assert Block(1, 4, 0.01).kept((3, 8)) == 4 and Block(2, 2, 0.5).kept((4, 6)) == 12
    assert NM(3, 5).kept((2, 10)) == 12 and Transposable(1, 4).kept((3, 4, 8)) == 24
    assert Dense().kept((3, 5)) == 15


def test_violations_are_counted_per_group_tile_side_and_block():
    weight = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, -0.0]])
    assert NM(2, 4).violations(weight) == 1
    assert Transposable(2, 4).violations(weight) == 2
    assert Unstructured(0.25).violations(weight) == 1
    assert Block(2, 2, 0.25).violations(weight) == 2
    assert Block(1, 4, 0.25).violations(weight) == 2


# Shapes


@pytest.mark.parametrize(
    ("text", "shape", "useful"),
    [
        ("2:4", (8, 30), r"shape \(8, 30\) has width 30; 2:4 needs a multiple of 4.*`exclude=`"),
        ("2:4", (), "no dimension"),
        ("2:4-transposable", (6, 8), "into 4x4 tiles.*`exclude=`"),
        ("2:4-transposable", (8, 6), "into 4x4 tiles"),
        ("2:4-transposable", (8,), "last two dimensions"),
        ("block:4x2:0.5", (6, 8), "into 4x2 blocks.*`exclude=`"),
        ("block:4x2:0.5", (8, 7), "into 4x2 blocks"),
        ("block:2x2:0.5", (8,), "into 2x2 blocks"),
    ],
)
def test_shapes_that_cannot_hold_a_pattern_are_refused(text, shape, useful):
    pattern = parse(text)
    weight = torch.ones(shape)
    for refuse in (pattern.check, pattern.kept):
        with pytest.raises(ValueError, match=useful):
            refuse(shape)
    for refuse in (pattern.mask, pattern.project, pattern.violations):
        with pytest.raises(ValueError, match=useful):
            refuse(weight)


def test_vectors_can_hold_what_needs_no_second_side():
    scores = torch.arange(8.0)
    assert NM(1, 4).mask(scores).nonzero().flatten().tolist() == [3, 7]
    assert Block(1, 4, 0.5).mask(scores).nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert Unstructured(0.25).mask(scores).nonzero().flatten().tolist() == [6, 7]


def test_every_pattern_is_a_final_subclass():
    assert all(kind.__bases__ == (Pattern,) and not kind.__subclasses__() for kind in PATTERNS)
