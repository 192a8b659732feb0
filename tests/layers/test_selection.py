"""What `include` and `exclude` mean."""

import pytest

from nxm_hf.layers.find import find_layers
from tests.support.layers import BERT_NAMES, MODELS, classifier, names_of


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("bert.encoder.layer.0.attention.self.query", BERT_NAMES[:1]),
        ("bert.encoder.layer.0", BERT_NAMES[:6]),
        ("encoder.layer.0", BERT_NAMES[:6]),
        ("layer.1", BERT_NAMES[6:]),
        ("attention.self.query", [BERT_NAMES[0], BERT_NAMES[6]]),
        ("attention.output.dense", [BERT_NAMES[3], BERT_NAMES[9]]),
        ("query", [BERT_NAMES[0], BERT_NAMES[6]]),
        ("attention_output", [BERT_NAMES[3], BERT_NAMES[9]]),
        ("attention", BERT_NAMES[:4] + BERT_NAMES[6:10]),
        ("ffn", BERT_NAMES[4:6] + BERT_NAMES[10:]),
        ("encoder.layer.1.", BERT_NAMES[6:]),
        (r"re:layer\.1\..*dense$", BERT_NAMES[9:]),
        ("re:query|key", BERT_NAMES[0:2] + BERT_NAMES[6:8]),
        (["ffn_out", "query", "layer.0"], [*BERT_NAMES[:6], BERT_NAMES[6], BERT_NAMES[11]]),
        (("key",), [BERT_NAMES[1], BERT_NAMES[7]]),
    ],
    ids=str,
)
def test_an_entry_means_the_same_in_include_and_exclude(entry, expected):
    """Names of leaves and of containers are honoured. Pitfall 24."""
    model = classifier()
    assert names_of(model, include=entry) == expected
    assert names_of(model, exclude=entry) == [name for name in BERT_NAMES if name not in expected]


def test_a_name_ends_where_its_component_ends():
    model = classifier(num_hidden_layers=11)
    assert all(".layer.1." in name for name in names_of(model, include="encoder.layer.1"))
    assert len(names_of(model, include="encoder.layer.1")) == 6


def test_include_comes_first_and_exclude_takes_from_it():
    assert names_of(classifier(), include="attention", exclude=["layer.0", "value"]) == [
        name for name in BERT_NAMES[6:10] if not name.endswith("value")
    ]


def test_a_role_is_not_a_part_of_a_name():
    """MobileBERT calls a bottleneck `attention`; the word means the group."""
    model = classifier("mobilebert", embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16)
    assert not any("bottleneck" in name for name in names_of(model, include="attention"))
    assert any("bottleneck" in name for name in names_of(model, include="other"))


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("attention.self.qury", "='attention.self.qury' matches no layer of this BertForSequenceClassification. Roles"),
        ("attention.self.qury", "closest names: attention.self.query"),
        ("quary", "Roles here: query, key, value, attention_output, ffn_in, ffn_out; closest names: query"),
        ("intermediat", "closest names: intermediate, "),
        ("bert.encoder.layer.7", "closest names: bert.encoder.layer.[01], bert.encoder.layer.[01]"),
        ("qkv", "='qkv' matches no layer.*Roles here: query"),
        ("", "='' matches no layer"),
        ("zzzzzz", "closest names: bert.encoder.layer.0.attention.self.query[.]$"),
        ("re:nonesuch", "='re:nonesuch' matches no layer"),
        ("re:layer.(", r"='re:layer\.\(' is not a regular expression: missing \)"),
        ("classifier", "='classifier' matches no layer that can be pruned: classifier is never pruned, because it st"),
        ("pooler", "bert.pooler.dense is never pruned, because it stands outside the repeated blocks"),
        ("bert.pooler.dense", "bert.pooler.dense is never pruned"),
        ("classifier.", "classifier is never pruned"),
        ("re:^classifier$", "classifier is never pruned"),
        ("word_embeddings", "bert.embeddings.word_embeddings is never pruned, because it is an embedding"),
        ("embeddings", "word_embeddings is never.*position_embeddings is never.*token_type_embeddings is never"),
    ],
)
def test_an_entry_that_means_no_layer_says_why(option, entry, message):
    with pytest.raises(ValueError, match=message) as error:
        find_layers(classifier(), **{option: ["query", entry]})
    assert str(error.value).startswith(f"{option}={entry!r}")


def test_a_tied_head_is_named_with_what_it_is_tied_to():
    """Pitfall 31."""
    model = MODELS["gpt2"]()
    with pytest.raises(ValueError, match=r"lm_head is never pruned, because its weight is tied to transformer.wte"):
        find_layers(model, include="lm_head")


def test_an_entry_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="include takes layer names, roles and 're:' patterns as strings; got 3"):
        find_layers(classifier(), include=[3])


@pytest.mark.parametrize("choice", [{"include": []}, {"exclude": ["attention", "ffn"]}])
def test_nothing_left_is_an_error_that_says_what_there_was(choice):
    with pytest.raises(
        ValueError, match=r"Nothing to prune in this BertForSeq.*none of its 12 layers. Roles here: que"
    ):
        find_layers(classifier(), **choice)
