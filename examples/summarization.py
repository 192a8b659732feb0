"""Fine-tune an encoder-decoder to N:M sparsity: summaries, or other texts that follow from texts.

    python summarization.py --recipe admm --pattern 2:4 --learning_rate 3e-4 --output_dir t5-cnn-2of4

It takes all options of `NxMConfig` and `Seq2SeqTrainingArguments`; `--help` lists them.
It needs `pip install datasets`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from nxm_hf import NxMConfig, NxMTrainer, verify


@dataclass
class Script:
    """A model and a dataset by name or directory, the columns of texts and summaries, and their lengths."""

    model_name_or_path: str = "google-t5/t5-small"
    source_prefix: str = "summarize: "
    dataset_name: str = "abisee/cnn_dailymail"
    dataset_config_name: str = "3.0.0"
    text_column: str = "article"
    summary_column: str = "highlights"
    max_source_length: int = 512
    max_target_length: int = 128


class SparseSeq2SeqTrainer(NxMTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer with the arguments of NxMTrainer."""


def rouge1(summary: str, reference: str) -> float:
    """Return F1 of the words of two texts, which is ROUGE-1 without stemming."""
    ours, theirs = (Counter(re.findall("[a-z0-9]+", text.lower())) for text in (summary, reference))
    return 2 * (ours & theirs).total() / max(ours.total() + theirs.total(), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, Seq2SeqTrainingArguments)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    args.predict_with_generate = True  # the metric compares texts
    args.generation_max_length = args.generation_max_length or script.max_target_length
    rows = load_dataset(script.dataset_name, script.dataset_config_name)
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
    # In float32: small updates of weights in bfloat16 would round to nothing. `--bf16` computes in bfloat16.
    model = AutoModelForSeq2SeqLM.from_pretrained(script.model_name_or_path, dtype=torch.float32)

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        text, summary = script.source_prefix + row[script.text_column], row[script.summary_column]
        batch = tokenizer(text, truncation=True, max_length=script.max_source_length)
        target = tokenizer(text_target=summary, truncation=True, max_length=script.max_target_length)
        return {**batch, "labels": target["input_ids"]}

    def metrics(prediction: Any) -> dict[str, float]:
        ids = [np.where(x < 0, tokenizer.pad_token_id, x) for x in (prediction.predictions, prediction.label_ids)]
        texts = [tokenizer.batch_decode(x, skip_special_tokens=True) for x in ids]
        return {"rouge1": float(np.mean([rouge1(*both) for both in zip(*texts, strict=True)]))}

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
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
