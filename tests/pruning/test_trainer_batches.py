"""Batches of a Trainer: several texts per row, or raw texts, become inputs of the model in a container."""

import pytest
import torch

import nxm_hf
from nxm_hf import NxMConfig, prune, verify
from nxm_hf.layers.plan import Plan
from nxm_hf.pruning.trainer_batches import forward_inputs, held_tokenizer
from tests.support.containers import Encoder, make_encoder, make_pairs, tokenize_pairs
from tests.support.models import assert_equal_weights, make_bert, make_texts, make_tokenizer


def plan_of(model):
    return Plan.of(model, NxMConfig("asp"))


def test_the_batch_of_a_model_in_no_container_is_the_batch_itself():
    batch = {"anchor_input_ids": torch.ones(1, 2), "anything": object()}
    (same,) = forward_inputs(batch, plan_of(make_bert()))
    assert same is batch


def test_each_text_of_a_row_is_a_forward_pass_and_labels_are_left_out():
    batch = tokenize_pairs(make_pairs(3)) | {"dataset_name": "pairs", "one_modality": "text"}
    parts = forward_inputs(batch, plan_of(make_encoder()))
    assert [set(part) for part in parts] == [{"input_ids", "token_type_ids", "attention_mask"} & set(parts[0])] * 2
    for part, column in zip(parts, ("one", "other"), strict=True):
        assert torch.equal(part["input_ids"], batch[f"{column}_input_ids"])
        assert torch.equal(part["attention_mask"], batch[f"{column}_attention_mask"])


def test_inputs_without_a_prefix_are_one_forward_pass():
    tokens = make_tokenizer()(["w1 w2"], return_tensors="pt")
    (part,) = forward_inputs({**tokens, "modality": "text", "labels": 1}, plan_of(make_encoder()))
    assert torch.equal(part["input_ids"], tokens["input_ids"]) and not {"modality", "labels"} & set(part)


def test_the_labels_of_a_classifier_are_left_out_too():
    encoder = Encoder(make_bert())
    tokens = make_tokenizer()(["w1 w2"], return_tensors="pt")
    (part,) = forward_inputs({**tokens, "labels": torch.ones(1)}, plan_of(encoder))
    assert "input_ids" in part and "labels" not in part


def test_texts_are_tokenized_as_the_pairs_that_a_cross_encoder_reads():
    texts = {"query": ["w1 w2", "w3"], "answer": ["w4", "w5 w6"], "label": torch.ones(2), "prompt": "w7"}
    (part,) = forward_inputs(texts, plan_of(make_encoder()))
    expected = make_tokenizer()(texts["query"], texts["answer"], padding=True, return_tensors="pt")
    assert torch.equal(part["input_ids"], expected["input_ids"])
    (single,) = forward_inputs({"query": texts["query"]}, plan_of(make_encoder()))
    assert torch.equal(
        single["input_ids"], make_tokenizer()(texts["query"], padding=True, return_tensors="pt")["input_ids"]
    )


@pytest.mark.parametrize("batch", [{"audio": torch.ones(2)}, {"query": [["w1"], ["w2"]]}, {"query": []}])
def test_a_batch_without_tokens_and_texts_is_an_error_that_names_its_columns(batch):
    with pytest.raises(ValueError, match=rf"gives {next(iter(batch))}, and BertModel needs tokens or texts"):
        forward_inputs(batch, plan_of(make_encoder()))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_pruning_a_container_is_pruning_the_model_inside_with_its_tokenizer(method):
    encoder, plain = make_encoder(), make_encoder()[0].model
    texts = make_texts()
    result = prune(encoder, "2:4", method, texts)
    prune(plain, "2:4", method, texts, tokenizer=make_tokenizer())
    assert_equal_weights(encoder[0].model, plain)
    assert verify(encoder).ok and [layer.name for layer in result.layers] == list(plan_of(plain).layers)


def test_ready_batches_of_several_texts_calibrate_the_model_inside():
    batches = [tokenize_pairs(make_pairs(8))]
    split = [part for batch in batches for part in forward_inputs(batch, plan_of(make_encoder()))]
    one, other = make_encoder(), make_encoder()
    assert prune(one, "2:4", "wanda", batches).tokens == sum(int(part["attention_mask"].sum()) for part in split)
    prune(other[0].model, "2:4", "wanda", split)
    assert_equal_weights(one, other)


def test_only_a_container_gives_a_tokenizer_of_its_own():
    model = make_bert()
    model.tokenizer = make_tokenizer()
    assert held_tokenizer(plan_of(model)) is None
    encoder = make_encoder()
    assert held_tokenizer(plan_of(encoder)) is encoder.tokenizer
    encoder.tokenizer = "no tokenizer"
    assert held_tokenizer(plan_of(encoder)) is None
    with pytest.raises(ValueError, match="its tokenizer is not known"):
        nxm_hf.prune(encoder, "2:4", "wanda", make_texts())
