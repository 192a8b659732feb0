"""Saved models: plain directories that load without this library."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BertTokenizer

from nxm_hf import prune, save_packed, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.storage import model_files
from nxm_hf.storage.model_files import find_device
from tests.support.models import make_rows
from tests.support.saving import train_two_steps

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
DECODER = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=1)
T5 = dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)
FAMILIES = {
    "bert": ("AutoModelForSequenceClassification", SMALL),
    "albert": ("AutoModelForSequenceClassification", {**SMALL, "embedding_size": 16}),
    "deberta-v2": (
        "AutoModelForSequenceClassification",
        {**SMALL, "relative_attention": True, "pos_att_type": "p2c|c2p"},
    ),
    "gpt2": ("AutoModelForCausalLM", DECODER),
    "t5": ("AutoModelForSeq2SeqLM", T5),
    "vit": ("AutoModelForImageClassification", {**SMALL, "image_size": 8, "patch_size": 4}),
    "nomic_bert": ("AutoModelForSequenceClassification", SMALL),
}
HERE = [name for name in FAMILIES if name in transformers.CONFIG_MAPPING]
# What a machine without this library does: load every directory, and say what the model answers.
ELSEWHERE = """
import sys
sys.modules["nxm_hf"] = None  # importing it would be an error
import torch, transformers
torch.set_num_threads(1)
answers = {}
for folder, auto, inputs in torch.load(sys.argv[1]):
    if auto == "pipeline":
        answer = transformers.pipeline("text-classification", folder, device="cpu")
        answers[folder] = answer(inputs, top_k=None, function_to_apply="none")
        continue
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    with torch.no_grad():
        answers[folder] = model(**inputs).logits
assert not any(name.startswith("nxm_hf.") for name in sys.modules)
torch.save(answers, sys.argv[2])
"""


def _inputs(family, rows):
    if family == "vit":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    inputs = {name: torch.stack([row[name] for row in rows[:4]]) for name in ("input_ids", "attention_mask")}
    return {**inputs, "decoder_input_ids": inputs["input_ids"]} if family == "t5" else inputs


def _rows(family, rows):
    if family == "vit":
        pixels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return [{"pixel_values": image, "labels": torch.tensor(i % 2)} for i, image in enumerate(pixels)]
    if family in ("gpt2", "t5"):
        return [{**row, "labels": row["input_ids"]} for row in rows[:16]]
    return rows[:16]


def _model(family):
    auto, words = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(AutoConfig.for_model(family, **words))


def _tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    return BertTokenizer({word: index for index, word in enumerate(words)})


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Family -> a trained sparse model and its directory."""
    rows, found = make_rows(), {}
    for family in HERE:
        folder = tmp_path_factory.mktemp(family)
        trainer = train_two_steps(folder / "run", _model(family), rows=_rows(family, rows))
        trainer.save_model(folder / "whole")
        trainer.model.save_pretrained(folder / "shards", max_shard_size="20KB")
        found[family] = (trainer.model.eval(), folder)
    return found


@pytest.fixture(scope="module")
def answers(families, tmp_path_factory):
    """Directory -> the logits that another process, which cannot import this library, gets from it."""
    folder, rows = tmp_path_factory.mktemp("elsewhere"), make_rows()
    asked = [
        (str(place / kind), FAMILIES[family][0], _inputs(family, rows))
        for family, (_, place) in families.items()
        for kind in ("whole", "shards")
    ]
    model, place = families["bert"]
    model.save_pretrained(place / "pipeline")
    _tokenizer().save_pretrained(place / "pipeline")
    asked.append((str(place / "pipeline"), "pipeline", "a b c"))
    torch.save(asked, folder / "asked.pt")
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, folder / "asked.pt", folder / "answers.pt"], check=True, cwd=folder
    )
    return torch.load(folder / "answers.pt")


def test_the_families_that_this_version_of_transformers_has_are_most():
    assert len(HERE) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "shards"])
@pytest.mark.parametrize("family", HERE)
def test_a_directory_gives_the_same_logits_where_this_library_is_absent(family, kind, families, answers, rows):
    """Pitfalls 2 and 28: plain safetensors with the zeros in them, in one file or several."""
    model, folder = families[family]
    with torch.no_grad():
        logits = model(**_inputs(family, rows)).logits
    assert torch.equal(answers[str(folder / kind)], logits)
    assert len(list((folder / kind).glob("*.safetensors"))) > (kind == "shards")


@pytest.mark.parametrize("kind", ["whole", "shards"])
@pytest.mark.parametrize("family", HERE)
def test_a_directory_of_every_family_verifies(family, kind, families):
    model, folder = families[family]
    for report in (verify(folder / kind), verify(model)):
        assert report.ok and report.density == 0.5
        assert {layer.name for layer in report.layers} == {layer.name for layer in find_layers(model)}


def test_shared_layers_are_deployed_once_and_transposed_ones_along_their_inputs(families):
    """Pitfall 19: Conv1D of GPT-2 keeps [in, out]; its groups stand along the first dimension."""
    assert len(verify(families["albert"][1] / "whole").layers) == 6
    weight = families["gpt2"][0].transformer.h[0].attn.c_attn.weight
    assert weight.shape == (32, 96)
    assert ((weight.reshape(8, 4, 96) != 0).sum(1) == 2).all()
    assert not ((weight.reshape(32, 24, 4) != 0).sum(-1) == 2).all()


@pytest.mark.slow
def test_a_pipeline_loads_it_where_this_library_is_absent(families, answers):
    model, folder = families["bert"]
    with torch.no_grad():
        logits = model(**_tokenizer()("a b c", return_tensors="pt")).logits[0]
    found = answers[str(folder / "pipeline")]
    # Not to the last bit: on some CPUs a pipeline's sums end otherwise there than a plain forward pass.
    expected = {f"LABEL_{i}": pytest.approx(x.item(), rel=1e-4) for i, x in enumerate(logits)}
    assert {x["label"]: x["score"] for x in found} == expected


BROKEN = {
    "an unknown type": ({"model_type": "nobodys"}, "skeleton", "is not the config of a model: "),
    "a size that is no number": ({"hidden_size": "large"}, "skeleton", "is not the config of a model: "),
    "heads that do not share a layer out": ({"num_attention_heads": 3}, "skeleton", "is not the config of a model: "),
    "weights that are cut": (None, "load_model", "cannot be loaded: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_error_of_transformers_is_one_line_that_begins_with_the_place(what, tmp_path):
    changes, read, problem = BROKEN[what]
    _model("bert").save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if changes:
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError) as caught:
        getattr(model_files, read)(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{config if changes else tmp_path} {problem}") and "\n" not in said


@pytest.mark.parametrize("usable", [r"cpu", r"cpu, cuda or cuda:1"])
@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_an_error_of_one_line_that_says_what_to_write(name, usable, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable != "cpu")
    with pytest.raises(ValueError, match=rf"^device={name} cannot be used: .+[^.]\. Write {usable}\.$"):
        find_device(name)
    assert find_device(None) == find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("at_once, opened", [(0, 13), (1 << 20, 2)])
def test_files_are_closed_after_every_few_layers(at_once, opened, tmp_path, monkeypatch):
    """What was read of a mapped file counts as memory until it is closed."""
    opens = []

    class Counted(model_files.WeightFiles):
        def __enter__(self):
            opens.append(self.folder)
            return super().__enter__()

    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(model_files, "WeightFiles", Counted)
    monkeypatch.setattr(model_files, "READ_AT_ONCE", at_once)
    layers = find_layers(model)
    for layer, (name, weight) in zip(layers, model_files.saved_weights(tmp_path, model, layers), strict=True):
        assert name == layer.name and torch.equal(weight, layer.weight)
    assert len(layers) == 12 and len(opens) == opened


CLASSES = {
    "BertForSequenceClassification": None,
    "NobodysForNothing": "NobodysForNothing",
    "BertConfig": "BertConfig",  # in transformers, and no model
    "X" * 300: "X" * 200,
    None: "none",
}


@pytest.mark.parametrize("name", CLASSES, ids=lambda name: str(name)[:30])
def test_only_a_model_of_transformers_is_made_and_any_other_class_is_named(name, tmp_path):
    config = AutoConfig.for_model("bert", **SMALL)
    for config.architectures in ([name, "BertModel"], *([[], None, "BertModel"] if name is None else [])):
        if CLASSES[name] is None:
            assert model_files.model_class(config, tmp_path).__name__ == name
            continue
        expected = "None" if config.architectures and config.architectures[0] is None else CLASSES[name]
        with pytest.raises(ValueError) as caught:
            model_files.model_class(config, tmp_path)
        assert str(caught.value) == (
            f"{tmp_path} was saved from {expected}, which transformers lacks. Load it and verify(model)."
        )


@pytest.mark.parametrize("read", ["read_model_config", "skeleton", "load_model"])
def test_code_in_a_directory_is_never_run_and_nobody_is_asked_to_run_it(read, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = "from transformers import BertConfig\n\n\nclass Theirs(BertConfig):\n    model_type = 'theirs'\n"
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n{code}")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}, "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json is not the config of a model: "):
        getattr(model_files, read)(tmp_path)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("  the first line. \nand another"), "the first line. "),
        (KeyError(), "KeyError"),
        (ValueError("x" * 400), "x" * 300),
    ],
    ids=["lines", "nothing", "long"],
)
def test_of_an_error_of_transformers_the_first_line_is_said_or_its_kind(error, says, tmp_path):
    with pytest.raises(ValueError) as caught, model_files._one_line_errors(tmp_path, "is odd"):
        raise error
    assert str(caught.value) == f"{tmp_path} is odd: {says}" and caught.value.__cause__ is error


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size"])
def test_a_config_that_asks_for_far_more_than_its_directory_holds_is_refused_before_memory_is_taken(key, tmp_path):
    _model("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: 4_000_000}))
    with pytest.raises(ValueError, match=rf"^{tmp_path}.* asks for .* Save (it again|the model again)\.$"):
        model_files.load_model(tmp_path)
    if key == "num_hidden_layers":
        with pytest.raises(ValueError, match=rf"^{tmp_path}.* asks for num_hidden_layers=4e\+06"):
            model_files.read_model_config(tmp_path)


def test_a_directory_without_a_config_or_a_weight_is_answered_with_what_to_name(tmp_path):
    (tmp_path / "file").touch()
    for name, problem in (("no.such", "does not exist"), ("file", "is a file")):
        with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/{name} {problem}; it must be a directory that"):
            model_files.skeleton(tmp_path / name)
    (tmp_path / "file").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path} holds no config\.json; it must be a directory that"):
        model_files.skeleton(tmp_path)
    model = _model("bert")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    layers, absent = find_layers(model), "bert.pooler.dense.bias"
    first = layers[0]
    del weights[absent]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"^{tmp_path} lacks {absent}\. Name a directory that holds the complete"):
        model_files.load_model(tmp_path)
    assert [*model_files.layer_weights(tmp_path, model, layers)]
    del weights[first.key]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"^{tmp_path} holds no weight of {first.name}\. Save the model again\.$"):
        list(model_files.saved_weights(tmp_path, model, layers))
    weights[first.key] = torch.ones(2, 3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"^{first.name} has the shape \(2, 3\) in the files of .*, and \(32, 32\) by its config"
    ):
        list(model_files.layer_weights(tmp_path, model, layers))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_model_is_loaded_with_the_bits_that_were_saved_and_no_random_number_is_drawn(packed, dtype, tmp_path):
    model = _model("bert")
    prune(model, "2:4")
    (save_packed if packed else type(model).save_pretrained)(model, tmp_path / "model")
    before = torch.get_rng_state()
    loaded = model_files.load_model_on(tmp_path / "model", None, dtype)
    kind, option = transformers.BertForQuestionAnswering, {"hidden_dropout_prob": 0.25}
    other, missing = model_files.load_with_missing(kind, tmp_path / "model", **option)
    assert torch.equal(torch.get_rng_state(), before) and other.config.hidden_dropout_prob == 0.25
    assert missing == ["qa_outputs.bias", "qa_outputs.weight"]
    expected = {name: tensor.to(getattr(torch, dtype or "float32")) for name, tensor in model.state_dict().items()}
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name])


def test_a_skeleton_has_the_names_and_shapes_of_the_model_and_takes_no_memory(families):
    for family, (model, folder) in families.items():
        empty = model_files.skeleton(folder / "whole")
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in empty.state_dict().items()}
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}, family
        assert type(empty) is type(model) and all(parameter.is_meta for parameter in empty.parameters())


def test_tensors_that_are_not_on_the_meta_device_are_filled_as_ever():
    with model_files._WithoutMemory():
        assert torch.empty(2).fill_(3.0).is_meta and nn.Linear(2, 2).weight.is_meta
        here = torch.empty(2, device="cpu")
        for fill in (lambda: here.fill_(3.0), lambda: nn.init.constant_(tensor=here, val=3.0)):
            here.zero_()
            assert here.tolist() == [0.0, 0.0] and fill().tolist() == [3.0, 3.0]
        assert nn.init.constant_(tensor=torch.empty(2), val=3.0).is_meta
