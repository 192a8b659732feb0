"""Fine-tune an encoder-decoder to N:M sparsity: summaries, or any other text that follows from a text.

    python summarization.py --model_name_or_path google-t5/t5-small --source_prefix "summarize: " \
        --dataset_name abisee/cnn_dailymail --dataset_config_name 3.0.0 \
        --text_column article --summary_column highlights --output_dir t5-cnn-2of4

It takes all options of `NxMConfig` and `Seq2SeqTrainingArguments`; `--help` lists them. Without a model and data it
makes both by code: `python summarization.py --learning_rate 1e-3`.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
)

from nxm_hf import NxMConfig, NxMTrainer, verify
from nxm_hf.demo.task import VALUES, make_tokenizer

TOPICS, OTHERS = list(VALUES)[:10], list(VALUES)[10:]


@dataclass
class Script:
    """A model and a dataset by name or directory, the columns of texts and summaries, and their lengths."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    text_column: str = "text"
    summary_column: str = "summary"
    source_prefix: str = ""
    max_source_length: int = 512
    max_target_length: int = 128


class SparseSeq2SeqTrainer(NxMTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer with the arguments of NxMTrainer."""


def make_rows(count: int, seed: int) -> Dataset:
    """Return texts of eight made-up words; the summary is their one to three topics, in the order of TOPICS."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        topics = sorted(draw.sample(TOPICS, draw.randint(1, 3)))
        words = [*topics, *draw.sample(OTHERS, 8 - len(topics))]
        rows.append({"text": " ".join(draw.sample(words, 8)), "summary": " ".join(topics)})
    return Dataset.from_list(rows)


def make_model() -> tuple[Any, Any]:
    """Return a small T5 with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"decoder_start_token_id": tokenizer.pad_token_id},
    )
    return AutoModelForSeq2SeqLM.from_config(config), tokenizer


def score(summary: str, reference: str) -> dict[str, float]:
    """Return whether both texts are the same, and the F1 of their words, which is ROUGE-1 without stemming."""
    words = [Counter(re.findall("[a-z0-9]+", text.lower())) for text in (summary, reference)]
    shared = (words[0] & words[1]).total()
    f1 = 2 * shared / max(words[0].total() + words[1].total(), 1)
    return {"exact_match": float(summary.strip() == reference.strip()), "rouge1": f1}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, Seq2SeqTrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    args.predict_with_generate = True  # the metrics compare texts
    args.generation_max_length = args.generation_max_length or script.max_target_length
    if script.dataset_name:
        rows = load_dataset(script.dataset_name, script.dataset_config_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), validation=make_rows(256, 2))
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        # In float32: small updates of weights in bfloat16 would round to nothing. `--bf16` computes in bfloat16.
        model = AutoModelForSeq2SeqLM.from_pretrained(script.model_name_or_path, dtype=torch.float32)
    else:
        model, tokenizer = make_model()

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        text, summary = script.source_prefix + row[script.text_column], row[script.summary_column]
        batch = tokenizer(text, truncation=True, max_length=script.max_source_length)
        target = tokenizer(text_target=summary, truncation=True, max_length=script.max_target_length)
        return {**batch, "labels": target["input_ids"]}

    def metrics(prediction: Any) -> dict[str, float]:
        ids = [np.where(x < 0, tokenizer.pad_token_id, x) for x in (prediction.predictions, prediction.label_ids)]
        texts = [tokenizer.batch_decode(x, skip_special_tokens=True) for x in ids]
        scores = [score(summary, reference) for summary, reference in zip(*texts, strict=True)]
        return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}

    rows = rows.map(tokenize, remove_columns=rows["train"].column_names)
    trainer = SparseSeq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=metrics,
        sparsity=sparsity,
    )
    trainer.train()
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
