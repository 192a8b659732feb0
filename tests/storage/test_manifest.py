"""Manifests: every file that changes is found and named, and files that others add are no matter."""

import hashlib
import json
import os
import random
import shutil

import pytest

import nxm_hf
from nxm_hf import prune, verify
from nxm_hf.cli.main import main as nxm
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.storage import file_blocks, file_digest, manifest
from nxm_hf.storage.file_blocks import BLOCK, CHUNK
from nxm_hf.storage.manifest import (
    LOCK_FILE,
    MANIFEST_FILE,
    add_to_manifest,
    changed_files,
    check_unchanged,
    file_digests,
    file_stamps,
    model_files_since,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from nxm_hf.storage.packed_directory import pack_directory, save_packed, unpack_directory
from nxm_hf.storage.replacing import COMPLETE
from tests.support.models import make_bert
from tests.support.training import KINDS, eventful, make_trainer


@pytest.fixture
def folder(tmp_path):
    """A directory with files of several sizes, one of them in a folder."""
    generator = random.Random(0)
    for name, size in (("a.json", 700), ("empty.txt", 0), ("weights.safetensors", 5000), ("1_Pooling/config.json", 33)):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(size))
    write_manifest(tmp_path / "model")
    return tmp_path / "model"


def edit_manifest(folder, change) -> None:
    """Change the content of a manifest."""
    payload = json.loads((folder / MANIFEST_FILE).read_text())
    change(payload)
    payload["digest"] = hashlib.sha256(json.dumps(payload["files"], sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(payload))


def test_every_file_is_recorded_with_its_size_and_its_sha256(folder):
    recorded = read_manifest(folder)
    assert sorted(recorded) == ["1_Pooling/config.json", "a.json", "empty.txt", "weights.safetensors"]
    for name, entry in recorded.items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "digest": hashlib.sha256(content).hexdigest()}
    assert changed_files(folder) == {}


def slow_digest(content: bytes, blocks: int = 16) -> str:
    """Return the digest of a long file as the module describes it, with Python's integers."""
    block, rows, columns = 255 * 513 * 8, 255, 513
    parts = []
    for begin in range(0, len(content), blocks * block):
        sums = b""
        for at in range(begin, min(begin + blocks * block, len(content)), block):
            padded = content[at : at + block].ljust(block, b"\0")
            numbers = [int.from_bytes(padded[k : k + 8], "little") for k in range(0, block, 8)]
            of_columns = [sum(numbers[k::columns]) for k in range(columns)]
            of_rows = [sum(numbers[k * columns : (k + 1) * columns]) for k in range(rows)]
            sums += b"".join((number % 2**64).to_bytes(8, "little") for number in of_columns + of_rows)
        parts.append(hashlib.sha256(sums).digest())
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("size", [(1 << 20) + 1, 2 * BLOCK, 3 * BLOCK + 5, CHUNK + 77])
def test_a_long_file_is_digested_in_blocks_and_every_byte_counts(size, folder):
    assert CHUNK == 16 * BLOCK  # what `slow_digest` says of it is what others have on their disks
    content = random.Random(1).randbytes(size) if size < CHUNK else b"\7" * size
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    write_manifest(folder)
    if size < CHUNK:
        assert read_manifest(folder)["weights.safetensors"]["digest"] == slow_digest(content)
    changed = {"weights.safetensors": "has changed since it was saved"}
    for at in (0, 1, size // 2, size - 77, size - 1):
        for bit in (1, 128):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            assert changed_files(folder) == changed
    page = content[4096:8192]
    path.write_bytes(content[:4096] + bytes(4096) + content[8192:])
    assert changed_files(folder) == changed
    if page != content[:4096]:
        path.write_bytes(page + content[:4096] + content[8192:])  # two pages exchanged
        assert changed_files(folder) == changed
    path.write_bytes(bytes(byte ^ 128 if at % 8 == 7 else byte for at, byte in enumerate(content)))
    assert changed_files(folder) == changed  # the sign of all 64-bit numbers
    path.write_bytes(content)
    assert changed_files(folder) == {}


def test_the_digest_of_a_long_file_is_that_of_its_chunks_in_order(folder, monkeypatch):
    for module in (file_blocks, file_digest):
        monkeypatch.setattr(module, "CHUNK", 2 * BLOCK)
    content = random.Random(2).randbytes(2 * BLOCK + 77)
    (folder / "a.json").write_bytes(content)
    write_manifest(folder, ["a.json"])
    assert read_manifest(folder)["a.json"]["digest"] == slow_digest(content, blocks=2)


def test_a_file_of_one_mebibyte_is_the_longest_that_is_digested_as_it_is(folder):
    for size, whole in ((1 << 20, True), ((1 << 20) + 1, False), (2 << 20, False)):
        (folder / "a.json").write_bytes(b"x" * size)
        write_manifest(folder, ["a.json"])
        assert (read_manifest(folder)["a.json"]["digest"] == hashlib.sha256(b"x" * size).hexdigest()) == whole


def test_a_manifest_that_is_too_long_is_not_read(folder):
    os.truncate(folder / MANIFEST_FILE, (64 << 20) + 1)
    assert changed_files(folder) == {MANIFEST_FILE: "is damaged (it is no regular file, or too long)"}
    os.truncate(folder / MANIFEST_FILE, 64 << 20)
    assert changed_files(folder)[MANIFEST_FILE].startswith("is damaged (Extra data")


def test_each_kind_of_change_is_named(folder):
    (folder / "a.json").write_bytes(b"x" * 700)
    (folder / "empty.txt").unlink()
    (folder / "weights.safetensors").write_bytes(b"")
    (folder / "1_Pooling/config.json").unlink()
    (folder / "1_Pooling/config.json").mkdir()
    assert changed_files(folder) == {
        "1_Pooling/config.json": "is no regular file",
        "a.json": "has changed since it was saved",
        "empty.txt": "is missing",
        "weights.safetensors": "has 0 bytes instead of 5,000",
    }
    assert changed_files(folder, ["a.json", "no.such"]) == {"a.json": "has changed since it was saved"}
    with pytest.raises(
        ValueError, match=r"not as it was saved: 1_Pooling/config.json is no .*; a.json has .*\. Do so\."
    ):
        check_unchanged(folder, "Do so.")


def test_files_that_others_add_or_that_people_edit_are_no_matter(folder):
    (folder / "README.md").write_text("by hand")
    (folder / "tokenizer.json").write_text("{}")
    (folder / ".gitattributes").write_text("*")
    (folder / "checkpoint-3").mkdir()
    assert changed_files(folder) == {}
    write_manifest(folder)
    assert "tokenizer.json" in read_manifest(folder) and len(read_manifest(folder)) == 5
    (folder / "README.md").write_text("by hand again")
    assert changed_files(folder) == {}


def test_links_to_files_are_followed_as_in_the_cache_of_the_hub(folder, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for name in ("a.json", "weights.safetensors", "empty.txt", "1_Pooling", MANIFEST_FILE):
        os.symlink(folder / name, tmp_path / "snapshot" / name)
    assert changed_files(tmp_path / "snapshot") == {}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", "a\\..\\b", "C:x", "a\0b"])
def test_names_that_lead_outside_are_refused(name, folder):
    edit_manifest(folder, lambda payload: payload["files"].update({name: {"size": 1, "digest": ""}}))
    assert list(changed_files(folder)) == [MANIFEST_FILE]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder):
    (folder / "a.json").unlink()
    os.mkfifo(folder / "a.json")
    assert changed_files(folder) == {"a.json": "is no regular file"}
    (folder / MANIFEST_FILE).unlink()
    os.mkfifo(folder / MANIFEST_FILE)
    assert "is no regular file" in changed_files(folder)[MANIFEST_FILE]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "5", "{}", '{"format": 1}', '{"format": 1, "files": 3}', '{"format": 1, "files": {"a": 1}}'],
)
def test_a_manifest_that_cannot_be_read_is_named_itself(content, folder):
    (folder / MANIFEST_FILE).write_text(content)
    assert changed_files(folder)[MANIFEST_FILE].startswith("is damaged (")
    if not content:
        assert changed_files(folder)[MANIFEST_FILE].startswith("is damaged (Expecting value: line 1")
    (folder / MANIFEST_FILE).write_text("[" * 100_000)
    assert changed_files(folder)[MANIFEST_FILE].startswith("is damaged (")


def test_files_of_a_save_that_was_stopped_are_put_in_place_before_they_are_compared(folder):
    content = (folder / "a.json").read_bytes()
    (folder / "a.json").unlink()
    inner = folder / COMPLETE / "model"
    inner.mkdir(parents=True)
    (inner / "a.json").write_bytes(content)
    (folder / COMPLETE / "files.json").write_text(json.dumps({"new": ["a.json"], "outdated": []}))
    assert changed_files(folder) == {} and not (folder / COMPLETE).exists()


def test_a_manifest_with_another_entry_is_damaged_unless_its_own_digest_fits(folder):
    content = (folder / MANIFEST_FILE).read_text()
    (folder / MANIFEST_FILE).write_text(content.replace('"size": 5000', '"size": 5001'))
    assert changed_files(folder) == {MANIFEST_FILE: "is damaged (its digest does not match its entries)"}


def test_the_order_of_entries_and_of_their_fields_is_no_matter(folder):
    payload = json.loads((folder / MANIFEST_FILE).read_text())
    payload["files"] = {name: dict(reversed(entry.items())) for name, entry in reversed(payload["files"].items())}
    (folder / MANIFEST_FILE).write_text(json.dumps(payload))
    assert changed_files(folder) == {}


def test_a_manifest_of_a_newer_version_says_so(folder):
    edit_manifest(folder, lambda payload: payload.update(format=2, files=[]))
    assert changed_files(folder) == {MANIFEST_FILE: "has format 2, and this nxm_hf reads 1; install a newer nxm-hf"}


def test_a_directory_without_a_manifest_passes(folder):
    for _ in range(2):
        remove_manifest(folder)
    (folder / "a.json").unlink()
    assert read_manifest(folder) is None and changed_files(folder) == {}
    check_unchanged(folder, "")
    add_to_manifest(folder, "*")
    assert not (folder / MANIFEST_FILE).exists()


def test_files_of_other_processes_are_added_and_the_rest_is_kept(folder):
    before = read_manifest(folder)
    (folder / "rng_state_1.pth").write_bytes(b"1")
    (folder / "a.json").write_bytes(b"changed")
    add_to_manifest(folder, "rng_state_*.pth")
    assert set(read_manifest(folder)) - set(before) == {"rng_state_1.pth"}
    assert list(changed_files(folder)) == ["a.json"]


def test_only_files_of_a_model_that_were_written_meanwhile_are_recorded(folder):
    before = file_stamps(folder)
    (folder / "events.log").write_text("new")
    (folder / "a.json").write_text("written again")
    (folder / "spiece.model").write_text("new")
    assert model_files_since(folder, before) == ["a.json", "spiece.model"]
    assert model_files_since(folder / "no.such", {}) == []


def test_digests_in_a_manifest_are_believed_and_other_files_are_read(folder):
    write_manifest(folder, ["a.json"])
    (folder / "b.json").write_bytes(b"b")
    recorded = read_manifest(folder)["a.json"]["digest"]
    (folder / "a.json").write_bytes(b"changed")
    by_hand = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.json", "b.json")}
    assert file_digests(folder, "?.json") == {"a.json": recorded, "b.json": by_hand["b.json"]}
    assert [*file_digests(folder, "?.json")] == ["a.json", "b.json"] and not file_digests(folder, "*.bin")
    remove_manifest(folder)
    assert file_digests(folder, "?.json") == by_hand
    (folder / MANIFEST_FILE).write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        file_digests(folder, "?.json")


def test_no_manifest_is_written_of_a_file_that_is_not_what_was_to_be_written(folder):
    digests = {name: entry["digest"] for name, entry in read_manifest(folder).items()}
    write_manifest(folder, ["a.json", "empty.txt"], expected=digests)  # also of files that are not recorded
    assert [*read_manifest(folder)] == ["a.json", "empty.txt"]
    remove_manifest(folder)
    with pytest.raises(RuntimeError, match=rf"^a\.json in {folder} is not what was written"):
        write_manifest(folder, expected=digests | {"a.json": digests["empty.txt"]})
    assert not (folder / MANIFEST_FILE).exists()


NAMES = {
    "config.json": (True, True),
    "model.safetensors": (True, True),
    "inner/tokenizer.json": (True, True),
    "events.log": (True, False),
    "README.md": (False, False),
    MANIFEST_FILE: (False, False),
    LOCK_FILE: (False, False),
    ".gitattributes": (False, False),
    ".git/config.json": (False, False),
    "inner/.hidden/config.json": (False, False),
    "inner/README.md": (False, False),
    **{f"{name}/config.json": (False, False) for name in ("checkpoint-1", "runs", "wandb", "report-2", "__pycache__")},
    "inner/runs/config.json": (False, False),
    "my-runs/config.json": (True, True),
}


def test_files_of_other_programs_and_those_that_people_edit_are_not_recorded(tmp_path):
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    stamps = file_stamps(tmp_path)
    assert [*stamps] == sorted(name for name, (recorded, _) in NAMES.items() if recorded)
    for name, stamp in stamps.items():
        stat = (tmp_path / name).stat()
        assert stamp == (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    write_manifest(tmp_path)
    assert [*read_manifest(tmp_path)] == [*stamps]
    manifest.record_model(tmp_path)
    assert [*read_manifest(tmp_path)] == sorted(name for name, (_, of_model) in NAMES.items() if of_model)
    before = file_stamps(tmp_path)
    os.replace(
        tmp_path / "config.json", tmp_path / "other.json"
    )  # another file in its place, of the same time and size
    (tmp_path / "config.json").write_text("config.json")
    os.utime(tmp_path / "config.json", ns=(before["config.json"].modified, before["config.json"].modified))
    assert model_files_since(tmp_path, before) == ["config.json", "other.json"]


@pytest.mark.parametrize("act", [write_manifest, manifest.record_model, changed_files])
def test_each_file_is_read_once_by_its_readers_too(act, folder):
    """A file of another size is not compared, so it is not read."""
    (folder / "a.json").write_bytes(b"x" * 701)
    seen = []
    readers = {
        name: [lambda block, name=name: seen.append((name, block.begin, block.end))] for name in os.listdir(folder)
    }
    act(folder, readers=readers)
    sizes = {"weights.safetensors": 5000, "empty.txt": 0, "a.json": 701} | {MANIFEST_FILE: 0}
    read = {write_manifest: {"a.json", "weights.safetensors"}, changed_files: {"weights.safetensors"}}
    names = read.get(act, {"a.json", "weights.safetensors"})
    assert sorted(seen) == sorted((name, 0, sizes[name]) for name in names)


# -- what we write has one -----------------------------------------------------------------------------------------


def assert_covered(folder, *names) -> None:
    """Raise unless a directory has a manifest of these files, and each of them is found when it changes."""
    assert set(names) <= set(read_manifest(folder)) and verify(folder).ok
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"{name} has changed since it was saved." in verify(folder).problems, name
        assert manifest.RESTORE in str(verify(folder))
        (folder / name).write_bytes(content)
    assert verify(folder).ok


MODEL = ("config.json", "model.safetensors", "nxm_config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_by_a_trainer_is_covered_and_saving_again_too(kind, tmp_path):
    trainer = make_trainer(tmp_path, eventful("ste"), kind, save_strategy="no")
    trainer.train()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        (tmp_path / "all_results.json").write_text("{}")
        trainer.save_model(str(folder))
        (tmp_path / "all_results.json").write_text("[]")
        trainer.save_state()
        assert_covered(folder, *MODEL)
        assert set(read_manifest(folder)) == set(MODEL)


def test_pruned_packed_and_unpacked_directories_are_covered(tmp_path):
    make_bert().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    prune_directory(tmp_path / "dense", tmp_path / "pruned", "2:4")
    pack_directory(tmp_path / "pruned", tmp_path / "packed")
    unpack_directory(tmp_path / "packed", tmp_path / "unpacked")
    for name in ("pruned", "packed", "unpacked"):
        assert_covered(tmp_path / name, *MODEL[:2], "tokenizer.json", "nxm_pruning.json")
    prune(model := make_bert(), "2:4")
    save_packed(model, tmp_path / "saved")
    assert_covered(tmp_path / "saved", *MODEL[:2])


def test_a_changed_source_is_not_pruned_or_packed(tmp_path):
    """Else the copy would have a manifest that fits the damage."""
    make_bert().save_pretrained(tmp_path / "dense")
    prune_directory(tmp_path / "dense", tmp_path / "pruned", "2:4")
    pack_directory(tmp_path / "pruned", tmp_path / "packed")
    for name in ("pruned", "packed"):
        content = bytearray((tmp_path / name / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (tmp_path / name / "model.safetensors").write_bytes(content)
    for act in (
        lambda: prune_directory(tmp_path / "pruned", tmp_path / "out", "2:4"),
        lambda: pack_directory(tmp_path / "pruned", tmp_path / "out"),
        lambda: unpack_directory(tmp_path / "packed", tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"model\.safetensors has changed since it was saved\. Restore them"):
            act()
    assert not (tmp_path / "out").exists()


def test_the_command_names_changed_files_even_if_the_weights_cannot_be_read(tmp_path, capsys):
    make_bert().save_pretrained(tmp_path / "dense")
    prune_directory(tmp_path / "dense", tmp_path / "out", "2:4")
    assert nxm(["verify", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    assert nxm(["verify", str(tmp_path / "out")]) == 1
    assert "model.safetensors has 0 bytes instead of" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "dense")
    with pytest.raises(ValueError, match="Restore them from a copy"):
        nxm_hf.verify(tmp_path / "out").raise_for_problems()


@pytest.mark.parametrize("size", [1e400, float("nan"), None, [], "x"])
def test_a_size_that_is_no_number_of_bytes_is_a_damaged_manifest(size, folder):
    edit_manifest(folder, lambda payload: payload["files"]["a.json"].update(size=size))
    assert list(changed_files(folder)) == [MANIFEST_FILE]


# -- files that change while they are read -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [-CHUNK, -BLOCK, -1, 1, BLOCK, CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("name", ["a.json", "weights.safetensors"])
def test_a_file_that_changes_its_size_while_it_is_read_is_reported_and_raises_nothing(
    change, name, folder, monkeypatch
):
    """The first block of the first file changes that file or one that is read later."""
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: 1)
    size = CHUNK + 2 * BLOCK
    for each in ("a.json", "weights.safetensors"):
        (folder / each).write_bytes(bytes(size))
    write_manifest(folder)
    found = []

    def resize(block) -> None:
        if not found:
            os.truncate(folder / name, size + change)
        found.append(block.begin)

    assert changed_files(folder, readers={"a.json": [resize]}) == {name: "has changed since it was saved"}
    assert name in changed_files(folder)


@pytest.mark.parametrize("change", [-CHUNK, -1, 1, 3 * CHUNK])
def test_a_file_that_changes_its_size_while_it_is_recorded_is_found_later(change, folder, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: 1)
    size = CHUNK + 2 * BLOCK
    (folder / "weights.safetensors").write_bytes(bytes(size))

    def resize(block) -> None:
        os.truncate(folder / "weights.safetensors", size + change)

    write_manifest(folder, readers={"a.json": [resize]})
    assert list(changed_files(folder)) == ["weights.safetensors"]
    os.truncate(folder / "weights.safetensors", size)
    assert list(changed_files(folder)) == ["weights.safetensors"], "its digest was not that of the whole file"
