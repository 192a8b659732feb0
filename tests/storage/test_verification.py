"""What a verification says of itself: tables, summaries, and what to do."""

import json

import pytest

from nxm_hf.patterns import parse
from nxm_hf.storage.verification import Verification, VerifiedLayer

GOOD = VerifiedLayer("a.query", "query", (4, 8), parse("2:4"), 16, 0, 0, 0)
BROKEN = VerifiedLayer("b.query", "query", (8, 8), parse("2:4"), 40, 3, 2, 0)
DIVERGED = VerifiedLayer("c.up", "ffn_in", (2, 4), parse("1:4"), 2, 0, 0, 1)


def test_layers_are_counted_in_a_summary_by_role_and_pattern():
    found = Verification((GOOD, BROKEN, DIVERGED), note="A note.")
    assert (GOOD.numel, GOOD.density, found.density) == (32, 0.5, 58 / 104)
    summary = found.summary()
    assert summary.groups() == [
        {"role": "query", "pattern": "2:4", "layers": 2, "density": 56 / 96, "layers_with_problems": 1},
        {"role": "ffn_in", "pattern": "1:4", "layers": 1, "density": 0.25, "layers_with_problems": 1},
    ]
    whole = {"ok": False, "density": 58 / 104, "problems": found.problems, "note": "A note."}
    assert summary.to_dict() == {**whole, "groups": summary.groups()}
    entry = {**vars(GOOD), "pattern": "2:4", "density": 0.5}
    assert found.to_dict()["layers"][0] == entry and {k: found.to_dict()[k] for k in whole} == whole
    json.dumps(found.to_dict()), json.dumps(summary.to_dict())
    lines = str(summary).splitlines()
    assert lines[0].split() == ["role", "pattern", "layers", "density"]
    assert [line.split() for line in lines[2:4]] == [
        ["query", "2:4", "2", "0.5833", "PROBLEM"],
        ["ffn_in", "1:4", "1", "0.2500", "PROBLEM"],
    ]
    assert lines[4:] == [
        "3 layers, density 0.5577: 3 problems",
        "b.query breaks 2:4 in 3 places.",
        "b.query holds 2 zeros that are -0.0.",
        "c.up holds 1 entries that are NaN.",
        "A plain Trainer fills zeros again; NxMTrainer(model=...) without sparsity= keeps them.",
        "A note.",
    ]
    assert str(found).splitlines()[5:] == lines[4:]
    rows = [line.split() for line in str(found).splitlines()[2:5]]
    assert rows[0] == ["a.query", "query", "4x8", "2:4", "0.5000"] and rows[1][-1] == rows[2][-1] == "PROBLEM"


def test_what_to_do_depends_on_what_was_found():
    fine = Verification((GOOD,))
    fine.raise_for_problems()
    assert fine.ok and str(fine).splitlines()[-1] == "1 layers, density 0.5000: ok"
    changed = Verification((GOOD,), changed=(("a.json", "is missing"),))
    many = Verification(tuple(VerifiedLayer(f"l{n}", "", (1, 4), parse("2:4"), 4, 1, 0, 0) for n in range(14)))
    for found, says in (
        (changed, "1 problems .*\n  a.json is missing.\nRestore them from a copy"),
        (Verification((BROKEN,)), "2 problems .*Were they trained on without nxm_hf"),
        (Verification((BROKEN, DIVERGED)), "3 problems .*The training has diverged"),
        (Verification((GOOD,), absent=("x.y",)), "\n  x.y is recorded as sparse, and the model has no such layer"),
        (Verification(()), "No layer was found to verify"),
        (many, "14 problems .*  l11 breaks 2:4 in 1 places.\nWere"),
    ):
        assert not found.ok
        with pytest.raises(ValueError, match=f"(?s){says}"):
            found.raise_for_problems()
    assert str(changed).splitlines()[-2:] == ["a.json is missing.", str(changed).splitlines()[-1]]
    assert str(changed).splitlines()[-1].startswith("Restore them from a copy")
    assert not any("plain Trainer" in str(found) for found in (fine, changed, Verification((DIVERGED,))))
