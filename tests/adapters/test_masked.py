"""Masked adapters: the delta stays inside the masks in the forward pass, in gradients, in merges and in trainings."""

import pytest
import torch

from nxm_hf import NxMTrainer, mask_adapter, merge_adapter, prune, verify
from nxm_hf.adapters.masked import adapter_layers, is_masked, masked_delta
from tests.support.adapters import adapter_of, fill, make_adapted, make_base, peft
from tests.support.models import make_batches, make_bert, make_model
from tests.support.training import assert_same, make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # those of another library are not ours
# Attention and feed-forward layers of each family, which PEFT wraps as Linear or as the transposed Conv1D.
TARGETS = {
    "bert": ["query", "value", "dense"],
    "llama": ["q_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "t5": ["q", "o", "wi_0", "wo"],
}
PATTERNS = ("2:4", "1:4", "2:4-transposable", "unstructured:0.5", "block:4:0.5")
FAMILIES = pytest.mark.parametrize("family", TARGETS)


def make_family(family: str, pattern: str = "2:4", masked: bool = True, **changes):
    """Return a sparse model of a family with a filled LoRA, in evaluation mode."""
    base = make_model(family)
    prune(base, pattern)
    changes = {"target_modules": TARGETS[family], "modules_to_save": None, **changes}
    return make_adapted(base=base, masked=masked, filled=True, **changes).eval()


@torch.no_grad()
def outputs(model, family: str) -> torch.Tensor:
    return model(**make_batches(family)[0]).logits


@FAMILIES
def test_the_outputs_before_and_after_a_merge_agree_and_the_merge_is_sparse(family):
    model = make_family(family)
    plain = outputs(make_family(family, masked=False), family)
    before = outputs(model, family)
    merged = merge_adapter(model).eval()
    assert verify(merged).ok and verify(merged, "2:4").density == 0.5
    torch.testing.assert_close(outputs(merged, family), before, rtol=1e-5, atol=1e-5)
    assert (plain - before).abs().max() > 1e-3  # so the mask matters


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_holds_after_a_merge_by_peft_itself(pattern):
    model = make_family("bert", pattern)
    before = outputs(model, "bert")
    merged = model.merge_and_unload()
    assert verify(merged, pattern).ok
    torch.testing.assert_close(outputs(merged, "bert"), before)


@FAMILIES
@pytest.mark.parametrize("safe", [False, True])
def test_merging_in_place_and_back_leaves_the_base_as_it_was(family, safe):
    model = make_family(family)
    before, shown = {name: w.clone() for name, w in model.state_dict().items()}, outputs(model, family)
    model.merge_adapter(safe_merge=safe)
    assert verify(model).ok
    torch.testing.assert_close(outputs(model, family), shown, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert verify(model).ok


@FAMILIES
def test_the_delta_is_the_product_of_the_factors_inside_the_mask_and_nothing_outside(family):
    layers = [pair for pair in adapter_layers(make_family(family)) if hasattr(pair[0], "nxm_mask")]
    assert len(layers) >= 6
    for module, base in layers:
        delta, whole = masked_delta(module, "default"), module.get_delta_weight("default")
        kept = base.weight != 0
        assert torch.equal(delta[kept], whole[kept]) and not delta[~kept].any() and whole[~kept].any()


def test_gradients_are_those_of_a_base_with_a_masked_delta():
    """Each LoRA layer is compared with a computation by hand."""
    module, base = next(adapter_layers(make_family("bert")))
    x = torch.randn(3, module.in_features)
    factors = [module.lora_A["default"].weight, module.lora_B["default"].weight]
    module(x).square().sum().backward()
    found = [factor.grad.clone() for factor in factors]
    a, b = (factor.detach().clone().requires_grad_() for factor in factors)
    weight = base.weight.detach() + module.scaling["default"] * (b @ a) * (base.weight != 0)
    (x @ weight.T + base.bias.detach()).square().sum().backward()
    torch.testing.assert_close(found, [a.grad, b.grad])


def test_dropout_and_a_bias_of_the_adapter_are_applied():
    model = make_family("bert", lora_dropout=0.5, lora_bias=True, target_modules=["intermediate.dense"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B.default.bias"):
                torch.nn.init.normal_(parameter, std=3.0)
    before = outputs(model, "bert")
    torch.manual_seed(0)
    assert not torch.equal(outputs(model.train(), "bert"), before)
    torch.testing.assert_close(outputs(merge_adapter(model.eval()), "bert"), before)


def test_a_kept_weight_of_zero_stays_in_the_mask():
    base = make_base()
    layer = base.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        layer.weight[0] = 0.0
    module, _ = next(adapter_layers(make_adapted(base=base, masked=True, filled=True)))
    assert int((masked_delta(module, "default")[0] != 0).sum()) == 16  # two of four, in a row of 32


def test_every_adapter_of_a_model_is_masked_and_the_active_one_is_merged():
    model = make_adapted()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    mask_adapter(model)
    fill(model)
    model.set_adapter("other")
    before = outputs(model.eval(), "bert")
    merged = merge_adapter(model)
    assert verify(merged).ok
    torch.testing.assert_close(outputs(merged, "bert"), before)


def test_masking_twice_changes_nothing():
    model = make_adapted(masked=True, filled=True).eval()
    before = outputs(model, "bert")
    assert is_masked(model) and torch.equal(outputs(mask_adapter(model), "bert"), before)


def test_what_is_trained_is_what_is_merged(tmp_path):
    model = make_adapted(masked=True)
    trainer = make_trainer(tmp_path, None, model=model, max_steps=3, save_strategy="no", learning_rate=1e-2)
    trainer.train()
    before = trainer.predict(trainer.eval_dataset).predictions
    model.eval()
    merged = merge_adapter(model)
    after = NxMTrainer(model=merged, args=trainer.args).predict(trainer.eval_dataset).predictions
    torch.testing.assert_close(torch.tensor(after), torch.tensor(before))


def test_the_mask_is_not_saved_and_moves_with_the_model():
    model = make_adapted(masked=True)
    assert not [name for name in model.state_dict() if "mask" in name]
    assert all("mask" not in name for name in adapter_of(model))
    assert next(module for module, _ in adapter_layers(model.to("meta"))).nxm_mask.is_meta


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_bert, r"This BertForSequenceClassification has no adapter\. Write mask_adapter\(get_peft_model"),
        (lambda: make_adapted(base=make_bert()), r"no record of being sparse.*nxm_hf\.prune\(model"),
        (lambda: make_adapted(target_modules=["pooler.dense"]), "No adapter layer stands on one of the 12 sparse"),
        (lambda: make_adapted(use_dora=True), "is a DoraLinearVariant, whose delta cannot be masked"),
        (lambda: make_adapted(init_lora_weights="pissa"), r"breaks 2:4 in"),
        (
            lambda: peft.get_peft_model(make_base(), peft.IA3Config(target_modules=["query"], feedforward_modules=[])),
            r"without LoRA variants; masking needs the LoRA of peft>=0\.20",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_with_what_to_write(make, message):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        mask_adapter(model)
    assert_same(dict(model.state_dict()), before)
    assert not is_masked(model)
