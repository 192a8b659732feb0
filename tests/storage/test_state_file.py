"""The state file: it comes back as it was written, whole or not at all."""

import json
import logging
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from nxm_hf import attach
from nxm_hf.storage import state_file
from nxm_hf.storage.state_file import (
    FORMAT,
    STATE_FILE,
    by_layer,
    check_same_run,
    fingerprint,
    pack,
    read_header,
    read_state,
    unpack,
    write_state,
)
from tests.support.grids import EACH_RECIPE, EACH_SPARSE_RECIPE
from tests.support.toy_training import Toy, adamw, train
from tests.support.training import assert_same, eventful

HEADER = {"step": 3, "config": {"recipe": "admm", "warmup": 0.1}, "layers": {"a.b": "2:4"}, "name": "Größe"}
TENSORS = {
    "a.b/weight": torch.tensor([[1.5, -0.0], [float("inf"), float("nan")]]),
    "a.b/mask": torch.tensor([True, False, True]),
    "a.b/phase": torch.tensor(2),
    "a.b/rho": torch.tensor(0.25, dtype=torch.float64),
    "a.b/half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a.b/none": torch.empty(0, 4),
}


def test_a_state_in_a_dict_comes_back_as_it_was():
    assert_same(unpack(pack(HEADER, TENSORS)), (HEADER, TENSORS))


def test_a_state_in_a_file_comes_back_as_it_was(tmp_path):
    new = tmp_path / "much" / "new"
    write_state(new, HEADER, TENSORS)
    assert_same(read_state(new), ({"format": FORMAT, **HEADER}, TENSORS))
    assert read_header(new).items() >= HEADER.items()


def test_a_tensor_that_is_not_contiguous_is_written_as_what_it_looks_like(tmp_path):
    write_state(tmp_path, {}, {"x": torch.arange(6.0).reshape(2, 3).T})
    assert torch.equal(read_state(tmp_path)[1]["x"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))


def test_a_tensor_that_needs_a_gradient_is_written_as_any_other(tmp_path):
    write_state(tmp_path, {}, {"x": torch.ones(2, requires_grad=True), "y": torch.ones(3, 2, requires_grad=True).T})
    assert {name: tensor.requires_grad for name, tensor in read_state(tmp_path)[1].items()} == {"x": False, "y": False}


def test_a_second_write_takes_the_place_of_the_first_and_leaves_nothing_else(tmp_path):
    write_state(tmp_path, HEADER, TENSORS)
    write_state(tmp_path, {**HEADER, "step": 4}, TENSORS)
    assert os.listdir(tmp_path) == [STATE_FILE] and read_header(tmp_path)["step"] == 4


def test_a_write_that_fails_leaves_the_state_that_was_there(tmp_path):
    write_state(tmp_path, HEADER, TENSORS)
    with pytest.raises(TypeError):
        write_state(tmp_path, {"step": object()}, TENSORS)
    assert read_header(tmp_path)["step"] == 3


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on the size of files")
def test_a_full_disk_leaves_the_state_that_was_there(tmp_path):
    import resource

    write_state(tmp_path, HEADER, TENSORS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises((OSError, SafetensorError)):
            write_state(tmp_path, {**HEADER, "step": 4}, {"a.b/weight": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_state(tmp_path)[0]["step"] == 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_state(folder, HEADER, TENSORS)
    return folder, (folder / STATE_FILE).read_bytes()


@settings(max_examples=300)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(written, share, bit):
    """Of the tensors or of the header: an error, unless the bit means nothing and all is read as it was written."""
    folder, content = written
    flipped = bytearray(content)
    flipped[int(share * len(content))] ^= 1 << bit
    (folder / STATE_FILE).write_bytes(flipped)
    try:
        state = read_state(folder)
    except ValueError as error:
        assert STATE_FILE in str(error)
    else:
        assert_same(state, ({"format": FORMAT, **HEADER}, TENSORS))


@settings(max_examples=50)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_state_cut_anywhere_is_torn(written, share):
    folder, content = written
    (folder / STATE_FILE).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"is torn \(.*\)\. Resume from an older checkpoint"):
        read_header(folder)


def test_a_state_that_is_missing_foreign_or_newer_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"has no {STATE_FILE}: a plain Trainer wrote it"):
        read_state(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match="was not written by nxm_hf"):
        read_state(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / STATE_FILE, metadata={"nxm_state": '{"format": 7}'})
    with pytest.raises(ValueError, match=r"has format 7; this nxm_hf reads 1. Install a newer nxm-hf"):
        read_state(tmp_path)
    with pytest.raises(ValueError, match=r"has no header. Give what engine.state_dict\(\) returned"):
        unpack({"x": torch.zeros(1)})


@pytest.mark.parametrize("read", [read_header, read_state])
def test_a_whole_state_of_the_next_format_is_refused(read, tmp_path, monkeypatch):
    """Its fingerprint is right, so that nothing but the number of the format speaks against it."""
    monkeypatch.setattr(state_file, "FORMAT", FORMAT + 1)
    write_state(tmp_path, HEADER, TENSORS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"has format {FORMAT + 1}; this nxm_hf reads {FORMAT}\. Install a newer"):
        read(tmp_path)


@pytest.mark.parametrize("metadata", ["{", "5", "[]", '{"format": "1"}', '{"format": true}', "[" * 100_000])
def test_a_header_that_is_no_object_with_a_format_is_damaged(metadata, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / STATE_FILE, metadata={"nxm_state": metadata})
    for read in (read_header, read_state):
        said = "Expecting property name" if metadata == "{" else ".+"
        with pytest.raises(ValueError, match=rf"{STATE_FILE} is damaged \({said}.*\)\. Resume from another checkpoint"):
            read(tmp_path)


def test_a_header_without_a_format_is_of_the_first_one_and_one_without_a_fingerprint_is_damaged(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / STATE_FILE, metadata={"nxm_state": '{"step": 1}'})
    assert read_header(tmp_path) == {"step": 1}
    with pytest.raises(ValueError, match=rf"{STATE_FILE} is damaged: its fingerprint differs"):
        read_state(tmp_path)


def test_a_reader_may_keep_a_part_of_each_tensor_and_the_whole_is_checked(tmp_path):
    write_state(tmp_path, HEADER, TENSORS)
    header, tensors = read_state(tmp_path, cut=lambda name, tensor: (name, tensor.shape))
    assert header == {"format": FORMAT, **HEADER}
    assert tensors == {name: (name, tensor.shape) for name, tensor in TENSORS.items()}


def test_a_state_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append([*map(str, paths)]), replace(*paths)))
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs the names of open files")
    write_state(tmp_path, HEADER, TENSORS)
    file, (source, target), folder = events
    assert file == source and target == str(tmp_path / STATE_FILE) and folder == str(tmp_path)


def test_tensors_are_grouped_by_the_layer_before_the_last_slash():
    tensors = {name: torch.zeros(1) for name in ("a.b/mask", "a.b/weight", "c/d/mask")}
    states = by_layer(tensors)
    assert {layer: [*slots] for layer, slots in states.items()} == {"a.b": ["mask", "weight"], "c/d": ["mask"]}
    assert states["c/d"]["mask"] is tensors["c/d/mask"]


RUN = {
    "config": {"recipe": "ste", "pattern": "2:4", "settings": {"refresh": 1}, "warmup": 0.0, "settle": 0.5},
    "layers": {"a": "2:4", "b": "2:4"},
    "total_steps": 12,
}


def changed(**changes):
    return {**RUN, **changes, "config": {**RUN["config"], **changes.pop("config", {})}}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"config": {"recipe": "asp"}}, r"recipe 'asp' and this run has 'ste'.*Resume with recipe='asp'"),
        ({"config": {"pattern": "1:4"}}, r"pattern '1:4' and this run has '2:4'.*Resume with pattern='1:4'"),
        ({"layers": {"a": "2:4", "c": "2:4"}}, "other layers than this run: see b, c. Check include and exclude"),
        ({"layers": {"a": "2:4", "b": "1:4"}}, "other layers than this run: see b. Check include and exclude"),
        ({"layers": {}}, "other layers than this run: see a, b. Check include and exclude"),
    ],
    ids=str,
)
def test_a_state_of_another_recipe_pattern_or_layer_is_refused(other, says):
    with pytest.raises(ValueError, match=says):
        check_same_run(changed(**other), RUN)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({}, []),
        ({"config": {"warmup": 0.25}}, ["Resuming with warmup=0.0; the state was made with 0.25."]),
        ({"config": {"settle": 0.0}}, ["Resuming with settle=0.5; the state was made with 0.0."]),
        (
            {"config": {"settings": {}}, "total_steps": 9},
            [
                "Resuming with settings={'refresh': 1}; the state was made with {}.",
                "Resuming towards 12 steps; the state was made for 9.",
            ],
        ),
    ],
    ids=str,
)
def test_a_state_made_with_other_settings_is_told_of(other, says, caplog):
    with caplog.at_level(logging.DEBUG, logger="nxm_hf"):
        check_same_run(json.loads(json.dumps(changed(**other))), RUN)
    assert caplog.messages == says and all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 2)},
        {"a": torch.zeros(2, 2, dtype=torch.float64)},
        {"a": torch.zeros(2, 2, dtype=torch.int32)},
        {"a": torch.zeros(4)},
        {"a": -torch.zeros(2, 2)},
        {"a": torch.zeros(2, 2), "b": torch.zeros(0)},
    ],
    ids=["name", "type", "type of the same bytes", "shape", "sign of a zero", "one more"],
)
def test_a_fingerprint_sees_names_types_shapes_bytes_and_how_many(other):
    one = {"a": torch.zeros(2, 2)}
    assert fingerprint(one.items()) != fingerprint(other.items())


def test_a_fingerprint_does_not_see_order_or_memory():
    one = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    other = {"b": torch.ones(1, requires_grad=True), "a": torch.arange(6.0).reshape(2, 3).T.contiguous().T}
    assert fingerprint(one.items()) == fingerprint(other.items())


@pytest.mark.parametrize("begin", (1, 3, 6, 9))
@EACH_RECIPE
def test_a_plain_loop_goes_on_from_state_dicts_bit_for_bit(recipe, begin, tmp_path):
    """Model, optimizer and engine through torch.save, into a model that began with other weights."""
    model, ends = Toy(), []
    optimizer = adamw(model)
    engine = attach(model, optimizer, eventful(recipe), total_steps=12)
    for _ in train(model, optimizer, 0, begin):
        pass
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "engine": engine.state_dict()}
    torch.save(parts, tmp_path / "state.pt")
    parts = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = Toy(seed=7)
    fresh_optimizer = adamw(fresh)
    fresh_engine = attach(fresh, fresh_optimizer, eventful(recipe), total_steps=12)
    fresh.load_state_dict(parts["model"])
    fresh_optimizer.load_state_dict(parts["optimizer"])
    fresh_engine.load_state_dict(parts["engine"])
    assert_same(engine.state_dict(), fresh_engine.state_dict())
    for one, stepper, bracket in ((model, optimizer, engine), (fresh, fresh_optimizer, fresh_engine)):
        for _ in train(one, stepper, begin, 12):
            pass
        state = bracket.state_dict()
        bracket.finish()
        ends.append((state, dict(one.state_dict()), stepper.state_dict()))
    assert_same(*ends)


@pytest.mark.parametrize("begin", [0, 5], ids=["the beginning", "the recipe"])
@EACH_SPARSE_RECIPE
def test_a_state_dict_is_a_copy_that_training_does_not_change(recipe, begin):
    """Neither the training that gave it, nor one that took it over."""
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, eventful(recipe), total_steps=12)
    for _ in train(model, optimizer, 0, begin):
        pass
    state = engine.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for _ in train(model, optimizer, begin, 9):
        pass
    assert_same(before, state)
    engine.load_state_dict(state)
    for _ in train(model, optimizer, begin, 9):
        pass
    assert_same(before, state, "the state that was loaded")
