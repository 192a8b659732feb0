"""Make a small model and a dataset by code, to try a script of this folder without a network.

    python made_data.py token_classification made
    python token_classification.py --model_name_or_path made/model --dataset_name made/rows \
        --dataset_config_name default --learning_rate 1e-3 --output_dir made/sparse

It writes `model` and `rows` into the directory that is named last. A script learns its rows in about 20 seconds of CPU.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from datasets import Sequence as ListOf
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    T5Config,
    ViTConfig,
    ViTImageProcessor,
    set_seed,
)

from nxm_hf.demo.task import NOT, VALUES, make_config, make_pairs, make_tokenizer

SIDE = 16  # of an image
DIRECTIONS = {"horizontal": (1, 0), "rising": (1, 1), "vertical": (0, 1), "falling": (1, -1)}  # change by row, column
TOPICS, OTHERS = list(VALUES)[:10], list(VALUES)[10:]
SHAPE: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)


def tagged_words(count: int, seed: int) -> Dataset:
    """Return sentences of made-up words, in which each word after a "not" is tagged."""
    tokens = [row["sentence1"].split() for row in make_pairs(count, seed, negation=True)]
    tags = [[int(before == NOT) for before in ["", *words[:-1]]] for words in tokens]
    rows = Dataset.from_dict({"tokens": tokens, "ner_tags": tags})
    return rows.cast_column("ner_tags", ListOf(ClassLabel(names=["O", "NEGATED"])))


def questions(count: int, seed: int) -> Dataset:
    """Return texts of made-up words; the question is "not", and the answer the word after it."""
    rows = []
    for number, pair in enumerate(make_pairs(count, seed, negation=False)):
        first, second = pair["sentence1"], pair["sentence2"]
        answer = {"text": [second.split()[0]], "answer_start": [len(first) + len(NOT) + 2]}
        context = f"{first} {NOT} {second}"
        rows.append({"id": str(number), "question": NOT, "context": context, "answers": answer})
    return Dataset.from_list(rows)


def summaries(count: int, seed: int) -> Dataset:
    """Return texts of eight made-up words; the summary is their one to three topics, in the order of TOPICS."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        topics = sorted(draw.sample(TOPICS, draw.randint(1, 3)))
        words = [*topics, *draw.sample(OTHERS, 8 - len(topics))]
        rows.append({"article": " ".join(draw.sample(words, 8)), "highlights": " ".join(topics)})
    return Dataset.from_list(rows)


def images(count: int, seed: int) -> Dataset:
    """Return noisy images of coloured stripes, as many of each of four directions; the label is the direction."""
    draw, (row, column), pixels = np.random.default_rng(seed), np.indices((SIDE, SIDE)), []
    labels = [number % len(DIRECTIONS) for number in range(count)]
    for down, right in map(list(DIRECTIONS.values()).__getitem__, labels):
        wave = np.sin(draw.uniform(0.7, 1.3) * (down * row + right * column) + draw.uniform(0, 2 * np.pi))
        image = 128 + 60 * wave[..., None] * draw.uniform(0.3, 1, 3) + draw.normal(0, 20, (SIDE, SIDE, 3))
        pixels.append(image.clip(0, 255).astype(np.uint8))
    features = Features(image=Image(), label=ClassLabel(names=list(DIRECTIONS)))
    return Dataset.from_dict({"image": pixels, "label": labels}, features=features)


def pairs(count: int, seed: int) -> Dataset:
    """Return pairs of sentences of made-up words; the score is the share of words that both have."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        words, shared = draw.sample(list(VALUES), 8), number % 5
        other = [*words[:shared], *words[4 : 8 - shared]]
        rows.append({"sentence1": " ".join(words[:4]), "sentence2": " ".join(other), "score": shared / 4})
    return Dataset.from_list(rows)


def texts(count: int, seed: int) -> Dataset:
    """Return texts of made-up words; each says its sentence twice."""
    sentences = [row["sentence1"] for row in make_pairs(count, seed, negation=True)]
    return Dataset.from_dict({"text": [f"{sentence} {sentence}" for sentence in sentences]})


def encoder(kind: Any) -> tuple[Any, Any]:
    """Return a small BERT with its tokenizer."""
    return kind.from_config(make_config()), make_tokenizer()


def language_model() -> tuple[Any, Any]:
    """Return a small Llama with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tokens: dict[str, Any] = dict(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **tokens)), tokenizer


def encoder_decoder() -> tuple[Any, Any]:
    """Return a small T5 with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tokens: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    config = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0, **tokens)
    return AutoModelForSeq2SeqLM.from_config(config), tokenizer


def vision_model() -> tuple[Any, Any]:
    """Return a small ViT with its image processor."""
    model = AutoModelForImageClassification.from_config(ViTConfig(**SHAPE, image_size=SIDE, patch_size=4))
    return model, ViTImageProcessor(size={"height": SIDE, "width": SIDE})


@dataclass(frozen=True)
class Made:
    """What one script learns: rows, a model with its tokenizer, and the name of the rows that are held out."""

    rows: Callable[[int, int], Dataset]
    model: Callable[[], tuple[Any, Any]]
    held_out: str = "validation"


MADE = {
    "token_classification": Made(tagged_words, lambda: encoder(AutoModelForTokenClassification)),
    "question_answering": Made(questions, lambda: encoder(AutoModelForQuestionAnswering)),
    "summarization": Made(summaries, encoder_decoder),
    "image_classification": Made(images, vision_model),
    "sentence_embeddings": Made(pairs, lambda: encoder(AutoModel)),
    "causal_language_model": Made(texts, language_model, held_out="test"),
    "prune_without_training": Made(texts, language_model, held_out="test"),
}


def write(script: str, folder: Path, count: int = 2048) -> None:
    """Write a model and rows for a script.

    Args:
        script: The name of the script.
        folder: The directory to write `model` and `rows` to.
        count: The number of rows to learn; an eighth as many are held out.
    """
    made = MADE[script]
    for part in made.model():
        part.save_pretrained(folder / "model")
    for split, number, seed in (("train", count, 1), (made.held_out, count // 8, 2)):
        made.rows(number, seed).to_parquet(folder / "rows" / f"{split}-00000-of-00001.parquet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", choices=MADE)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    set_seed(0)  # of the first weights
    write(options.script, options.folder)


if __name__ == "__main__":
    main()
