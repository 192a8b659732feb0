"""The task of the demo: its rule, and the tokens of its words."""

from nxm_hf.demo.task import VALUES, make_config, make_pairs, make_tokenizer


def test_the_rule_of_the_demo_is_what_it_says():
    """The label, worked out again word by word."""

    def value(sentence: str) -> float:
        sign, total = 1, 0.0
        for word in sentence.split():
            total += 0 if word == "not" else sign * VALUES[word]
            sign = -1 if word == "not" else 1
        return total

    rows = list(make_pairs(300, 5, negation=True))
    assert sum("not" in row["sentence1"].split() for row in rows) > 100
    for row in rows:
        assert row["label"] == ("more" if value(row["sentence1"]) > value(row["sentence2"]) else "less")
    plain = list(make_pairs(300, 5, negation=False))
    assert not any("not" in row["sentence1"].split() for row in plain)
    assert 100 < sum(row["label"] == "more" for row in plain) < 200


def test_every_word_has_a_token_of_the_model():
    tokenizer = make_tokenizer()
    for pair in make_pairs(20, 1, negation=True):
        ids = tokenizer(pair["sentence1"], pair["sentence2"])["input_ids"]
        assert len(ids) == 11 and max(ids) < make_config().vocab_size and tokenizer.unk_token_id not in ids
