"""FSDP2: sharded weights are trained to the bits of DDP, and any number of processes resumes what others began."""

import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nxm_hf
from nxm_hf.analysis import training_memory
from nxm_hf.methods.rho import MEASURED_STEPS
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.state_file import fingerprint, read_state
from tests.support.grids import SPARSE
from tests.support.models import make_bert
from tests.support.processes import OF_GLOO, facts_of, read_facts, run_sharded
from tests.support.processes.sharded import FEW, RESUMED
from tests.support.sharded_loops import ACROSS, MAKE, Uneven, config_of, loop
from tests.support.sharded_modes import MODES
from tests.support.training import assert_same, make_12_step_trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program's trainings leave their checkpoints, with the facts of its processes."""
    return run_sharded("sharded", tmp_path_factory.mktemp("sharded"), "[234r]*")


@pytest.fixture(scope="module")
def two(folder):
    """The facts of a group of two processes."""
    return facts_of(folder, 2, 2)


@pytest.fixture(scope="module")
def three(folder):
    """The facts of a group of three processes."""
    return facts_of(folder, 3, 3)


@pytest.fixture(scope="module")
def four(folder):
    """The facts of a group of four processes."""
    return facts_of(folder, 4, 4)


@pytest.mark.parametrize("recipe", SPARSE)
def test_sharded_weights_are_trained_to_the_bits_of_ddp(recipe, two):
    """Twelve steps, with a warm-up, events of the recipe at every second step, and a frozen mask at the end."""
    for facts in two:
        ddp, fsdp = facts[f"equal/{recipe}"]["ddp"], facts[f"equal/{recipe}"]["fsdp"]
        assert fsdp["sharded"] == [True] * 12 and ddp["sharded"] == [False] * 12
        assert fsdp["steps"] == ddp["steps"]
        assert fsdp["weights"] == ddp["weights"] and fsdp["ok"]


@pytest.mark.parametrize("recipe", SPARSE)
def test_sharded_weights_are_logged_as_whole_ones(recipe, two):
    """Sums over processes are added in another order."""
    records = [two[0][f"equal/{recipe}"][kind]["records"] for kind in ("ddp", "fsdp")]
    assert any("nxm/residual" in record for record in records[0])
    for ddp, fsdp in zip(*records, strict=True):
        assert fsdp == pytest.approx(ddp, rel=1e-5, abs=1e-7)
    assert two[0][f"equal/{recipe}"]["fsdp"]["records"] == two[1][f"equal/{recipe}"]["fsdp"]["records"]


@pytest.mark.parametrize("recipe", SPARSE)
def test_a_checkpoint_of_sharded_weights_is_that_of_whole_ones(recipe, two, folder):
    for step in (6, 12):
        ddp, fsdp = (folder / "equal" / recipe / kind / f"checkpoint-{step}" for kind in ("ddp", "fsdp"))
        assert missing_parts(fsdp) == [] and nxm_hf.verify(fsdp).ok
        assert sorted(path.name for path in fsdp.iterdir()) == sorted(path.name for path in ddp.iterdir())
        assert_same(read_state(fsdp), read_state(ddp))
        assert_same(load_file(fsdp / "model.safetensors"), load_file(ddp / "model.safetensors"))
        assert_same(*(torch.load(path / "optimizer.pt", weights_only=True) for path in (fsdp, ddp)))


@pytest.mark.parametrize("recipe", RESUMED)
def test_sharded_and_whole_trainings_resume_each_other_bit_for_bit(recipe, two):
    for facts in two:
        unbroken = facts[f"equal/{recipe}"]["ddp"]
        for kind in ("ddp", "fsdp"):
            resumed = facts[f"crossed/{recipe}"][kind]
            assert resumed["sharded"] == [kind == "fsdp"] * 6
            assert resumed["steps"] == unbroken["steps"][6:] and resumed["weights"] == unbroken["weights"]


@pytest.mark.parametrize("recipe", FEW)
def test_one_process_resumes_what_two_trained_with_shards(recipe, folder, tmp_path):
    begun = folder / "equal" / recipe / "fsdp" / "checkpoint-6"
    trainer = make_12_step_trainer(tmp_path, config_of(recipe), max_grad_norm=0, model=make_bert())
    trainer.train(resume_from_checkpoint=str(begun))
    assert trainer.state.global_step == 12 and nxm_hf.verify(trainer.model).ok


@pytest.mark.parametrize("recipe", FEW)
def test_evaluations_see_the_deployed_weights_and_training_ends_with_the_best(recipe, two, folder):
    for facts in two:
        ddp, fsdp = (facts[f"best/{recipe}"][kind] for kind in ("ddp", "fsdp"))
        assert fsdp["sharded"] == [True] * 6 and fsdp["steps"] == ddp["steps"]
        assert len(fsdp["evaluated"]) == 3 and all(fsdp["evaluated"])
        assert Path(fsdp["best"]).name == Path(ddp["best"]).name == "checkpoint-2"
        assert fsdp["weights"] == fingerprint(load_file(Path(fsdp["best"]) / "model.safetensors").items())
        assert fsdp["ok"]
    saved = make_bert().from_pretrained(folder / "best" / recipe / "fsdp" / "final")
    assert fingerprint(saved.named_parameters()) == two[0][f"best/{recipe}"]["fsdp"]["weights"]


def test_the_callback_in_a_plain_trainer_gives_the_bits_of_ddp_and_resumes(two, folder):
    for facts in two:
        ddp, fsdp, resumed = (facts["called_back/admm"][kind] for kind in ("ddp", "fsdp", "resumed"))
        assert fsdp["sharded"] == [True] * 12 and ddp["sharded"] == [False] * 12
        assert fsdp["steps"] == ddp["steps"] and resumed["steps"] == ddp["steps"][6:]
        assert Path(fsdp["best"]).name == Path(ddp["best"]).name == "checkpoint-6"
        assert fsdp["weights"] == ddp["weights"] and fsdp["ok"] and all(fsdp["evaluated"])
    for kind, step in (("fsdp", 6), ("fsdp", 12), ("resumed", 12), ("fsdp", "final")):
        written = folder / "called_back" / "admm" / kind / (step if step == "final" else f"checkpoint-{step}")
        assert nxm_hf.verify(written).ok and "## Sparsity" in (written / "README.md").read_text()
        if step != "final":
            assert missing_parts(written, by_fsdp=True) == [] and missing_parts(written) == ["optimizer.pt"]
            assert_same(read_state(written), read_state(folder / "called_back" / "admm" / "ddp" / written.name))


@pytest.mark.parametrize(("kind", "name"), [("pruned", "layer.1.output.dense"), ("other", "word_embeddings")])
def test_a_save_of_the_callback_is_compared_with_the_gathered_weights(kind, name, two, folder):
    first, second = (facts[f"lost/{kind}"] for facts in two)
    assert len(first) == 1 and re.search(f"{name}.* is not the weight that was saved", first[0]) and second == []
    assert not (folder / "lost" / kind / "end" / "model.safetensors").exists()
    assert [facts["lost/nothing"] for facts in two] == [[], []]
    assert nxm_hf.verify(folder / "lost" / "nothing" / "end").ok


def test_experts_in_one_parameter_are_trained_and_saved_as_with_ddp(two, folder):
    for facts in two:
        ddp, fsdp = facts["mixed"]["ddp"], facts["mixed"]["fsdp"]
        assert fsdp["sharded"] == [True] * 2 and fsdp["weights"] == ddp["weights"] and fsdp["ok"]
    ddp, fsdp = (folder / "mixed" / kind / "checkpoint-4" for kind in ("ddp", "fsdp"))
    assert missing_parts(fsdp) == [] and nxm_hf.verify(fsdp).ok
    assert_same(read_state(fsdp), read_state(ddp))
    assert_same(load_file(fsdp / "model.safetensors"), load_file(ddp / "model.safetensors"))
    assert_same(*(torch.load(path / "optimizer.pt", weights_only=True) for path in (fsdp, ddp)))


def test_a_tied_weight_is_saved_once_as_with_ddp(two, folder):
    assert all(facts["tied"]["fsdp"]["sharded"] == [True] * 2 for facts in two)
    ddp, fsdp = (load_file(folder / "tied" / kind / "checkpoint-2" / "model.safetensors") for kind in ("ddp", "fsdp"))
    assert "lm_head.weight" not in ddp
    assert_same(fsdp, ddp)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("recipe", FEW)
def test_a_custom_loop_trains_uneven_empty_and_transposed_shards_as_whole_weights(recipe, name, two):
    assert [facts[f"looped/{recipe}/{name}"]["rows"] for facts in two] == ([1, 0] if name == "uneven" else [16, 16])
    for facts in two:
        whole, sharded = (facts[f"looped/{recipe}/{name}"][kind] for kind in ("whole", "sharded"))
        for fact in ("state", "loss", "back", "weights"):
            assert sharded[fact] == whole[fact], fact
        assert sharded["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
        assert sharded["ok"] and sharded["state"] == sharded["back"]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("recipe", FEW)
def test_the_bytes_of_the_first_process_are_those_that_are_planned(recipe, name, two):
    config = config_of(recipe).replace(settle=0.0, exclude="back" if name == "uneven" else None)
    for kind, processes in (("whole", 1), ("sharded", 2)):
        planned = training_memory(MAKE[name](), config, processes)
        held = two[0][f"looped/{recipe}/{name}"][kind]["bytes"]
        assert held == {key: getattr(planned, key) for key in held}


def test_no_step_communicates_but_the_one_that_measures_rho(two):
    """It measures all layers together: one sum of their norms, or four of the counts that a quantile needs."""
    for facts in two:
        for recipe in FEW:
            for name in MAKE:
                assert facts[f"looped/{recipe}/{name}"]["sharded"]["counts"] == [0] * 12
        assert facts["measured"]["counts"] == [1, 0, 0, 0] and facts["measured"]["layers"] > 1
        assert facts["measured_exactly"]["counts"] == [0] * (MEASURED_STEPS - 1) + [4, 0, 0]


def test_a_measured_rho_differs_by_rounding_alone(two):
    """It is a ratio of norms, whose squares are added up in another order in several processes."""
    for facts in two:
        assert 0 < facts["measured"]["rho"] < 1e-6
        assert facts["measured"]["weights"] < 1e-3  # a tenth of one step of Adam


def test_a_rho_that_is_measured_by_counts_is_that_of_whole_weights(two):
    for facts in two:
        facts = facts["measured_exactly"]
        assert facts["rho"] > 0 and facts["sharded"] == facts["whole"]


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_fsdp_gives_the_same_bits(mode, two):
    """In bf16, those of weights that are whole in each process. The weights that train are fp32 in both."""
    for facts in two:
        in_bf16, found = mode.startswith("bf16"), facts[f"modes/{mode}"]
        assert found == facts["modes/bf16-one" if in_bf16 else "modes/plain"]
        assert (found != facts["modes/plain"]) == in_bf16
        assert all(part["ok"] for part in found.values())
        for recipe in ("sr-ste", "admm"):
            assert found[recipe]["types"] == ["torch.float32"] and found[recipe]["counts"] == 0


def test_every_process_sees_what_is_wrong_in_another(two):
    """Layers of 5, 3 and 1 rows of 8; the second process has the last 2, 1 and 0 of them."""
    for facts in two:
        assert facts["broken"]["found"] == [[12, 0, 16], [12, 0, 0], [4, 0, 0], [20, 0, 0], [16, 2, 0], [4, 0, 0]]
        assert "1 layers to prune hold NaN" in facts["broken"]["nan"] and "layers.1.three" in facts["broken"]["nan"]


@pytest.mark.parametrize("recipe", FEW)
def test_three_processes_and_one_load_the_state_of_two(recipe, two, three, folder):
    begun = load_file(folder / "looped" / recipe / "uneven" / "sharded.safetensors")
    expected = two[0][f"looped/{recipe}/uneven"]["sharded"]["state"]
    assert fingerprint(begun.items()) == expected
    assert [facts[f"loaded/{recipe}"]["state"] for facts in three] == [expected] * 3
    config = config_of(recipe).replace(settle=0.0, exclude="back")
    _, engine, _ = loop(Uneven(), config, shard=False, state=begun, steps=0)
    assert fingerprint(engine.state_dict().items()) == expected


@pytest.mark.parametrize(("recipe", "pattern", "name", "most"), ACROSS)
def test_what_looks_at_the_whole_weight_trains_parts_to_the_same_bits(recipe, pattern, name, most, four):
    """Patterns across rows, and drops and growth of the whole layer; the communications of a step are counted."""
    whole = four[0][f"across/{recipe}/{pattern}/{name}"]["whole"]
    for facts in four:
        sharded = facts[f"across/{recipe}/{pattern}/{name}"]["sharded"]
        for fact in ("state", "metrics", "loss", "weights"):
            assert sharded[fact] == whole[fact], fact
        assert whole["ok"] and sharded["ok"]
        first, refresh, freeze, *others = sharded["counts"]
        assert (refresh > 0) == (most > 0) and refresh <= most * sharded["pruned"]
        assert freeze <= (2 * most + 1) * sharded["pruned"]  # the mask is solved once more, and checked
        assert first == 0 and others == [0, 0]


def test_the_threshold_of_parts_is_that_of_the_whole_after_two_exchanges(three):
    """Also for equal scores, for -0.0, and for a process without any; there is one more where equal scores are cut."""
    for facts in three:
        error = facts["selected"].pop("nan")
        assert "hold 8 NaN" in error
        for case, (right, count) in facts["selected"].items():
            assert right, case
            assert 0 <= count - (4 if "float64" in case else 2) <= ("float64 0" not in case), case
        assert len({count for right, count in facts["selected"].values()}) == 4


@pytest.mark.parametrize("recipe", FEW)
def test_two_sets_of_two_processes_train_as_one_set_bit_for_bit(recipe, four):
    """Uneven and empty shards, and four different batches whose gradients are added up in the same order."""
    for facts in four:
        assert facts[f"hybrid/{recipe}"]["sets"] == facts[f"hybrid/{recipe}"]["set"]
        assert facts[f"hybrid/{recipe}"]["sets"]["ok"]
        assert facts[f"hybrid/{recipe}"]["sets"]["density"] == 0.5  # counted in one set
        assert facts[f"hybrid/{recipe}"]["sets"]["counts"] == [0] * 12


def test_trainer_with_hybrid_sharding_gives_the_bits_and_files_of_ddp(four, folder):
    for facts in four:
        ddp, hybrid = (facts["launched/sr-ste"][kind] for kind in ("ddp", "hybrid"))
        assert hybrid["sharded"] == [True] * 12 and ddp["sharded"] == [False] * 12
        assert hybrid["weights"] == ddp["weights"] and hybrid["ok"]
    for step in (6, 12):
        ddp, hybrid = (folder / "launched" / "sr-ste" / kind / f"checkpoint-{step}" for kind in ("ddp", "hybrid"))
        assert missing_parts(hybrid) == []
        assert_same(read_state(hybrid), read_state(ddp))
        assert_same(load_file(hybrid / "model.safetensors"), load_file(ddp / "model.safetensors"))
        assert_same(*(torch.load(path / "optimizer.pt", weights_only=True) for path in (hybrid, ddp)))


def test_a_process_that_is_killed_in_a_step_ends_the_others_and_fewer_resume(folder):
    assert read_facts(folder / "ends-step.json") == [-signal.SIGKILL, 1, 1]
    for rank in (1, 2):
        error = read_facts(folder / f"facts-step-{rank}.json")["error"]
        assert any(words in error for words in OF_GLOO), error
    for facts in facts_of(folder, "revived", 2):
        facts = facts["revived/step"]
        assert facts["newest"] == "checkpoint-4" and facts["sharded"] == [True] * 8 and facts["ok"]
    assert missing_parts(folder / "step" / "checkpoint-12") == []


@pytest.mark.parametrize(
    ("name", "useful"),
    [
        ("custom", 'may look at whole weights.*DDP.*"sr-ste"'),
        ("tensors", "mesh of .*only FSDP2 is supported.*leave out tensor parallelism"),
        ("columns", "not sharded by rows; call fully_shard on all of them, without shard_placement_fn"),
    ],
)
def test_what_needs_whole_weights_is_refused_in_one_sentence(name, useful, two):
    for facts in two:
        error = facts["refused"][name]
        assert error.endswith(".") and error.count(". ") == 0
        assert re.search(useful, error), error
