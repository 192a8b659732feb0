"""A task made by code: sentence pairs in the form of GLUE, their tokenizer, and the shape of a small BERT.

Every word has a hidden value; the label says whether the values of the first sentence add up to more than those of the
second. The word "not" negates the value of the word after it.
"""

import random
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

NOT, LABELS, LENGTH = "not", ("less", "more"), 4
VALUES = {f"word{i}": random.Random(i).gauss(0, 1) for i in range(100)}


def make_pairs(count: int, seed: int, negation: bool) -> Iterator[dict[str, str]]:
    """Yield rows of two sentences, with the label of the pair.

    Args:
        count: The number of rows.
        seed: The seed of the sentences.
        negation: Whether sentences have the word "not".

    Yields:
        The rows, with the columns sentence1, sentence2 and label.
    """
    draw = random.Random(seed)
    words = list(VALUES)
    for _ in range(count):
        sentences = [[draw.choice(words) for _ in range(LENGTH)] for _ in range(2)]
        for sentence in sentences if negation else ():
            for position in range(LENGTH - 1):  # so that a word follows each "not"
                sentence[position] = NOT if draw.random() < 0.25 else sentence[position]
        first, second = map(_value_of, sentences)
        yield {
            "sentence1": " ".join(sentences[0]),
            "sentence2": " ".join(sentences[1]),
            "label": LABELS[first > second],
        }


def _value_of(sentence: Sequence[str]) -> float:
    """Return the sum of the values of the words, each negated if it follows a "not"."""
    previous = ["", *sentence]
    return sum(
        VALUES.get(word, 0) * (-1 if before == NOT else 1) for before, word in zip(previous, sentence, strict=False)
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word."""
    words = _vocabulary()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)


def make_config() -> BertConfig:
    """Return the config of a BERT of two layers for this task."""
    return BertConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        architectures=[BertForSequenceClassification.__name__],
    )


def _vocabulary() -> list[str]:
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", NOT, *VALUES]
