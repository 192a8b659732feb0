"""Fine-tune a causal language model to N:M sparsity with TRL. It needs `pip install trl`.

    python causal_language_model.py --model_name_or_path Qwen/Qwen2.5-0.5B \
        --dataset_name trl-lib/Capybara --output_dir qwen-2of4

It takes all options of `NxMConfig` and `SFTConfig`; `--help` lists them. Without a model and data it makes both by
code: `python causal_language_model.py --learning_rate 1e-3`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, LlamaConfig
from trl import SFTConfig, SFTTrainer

from nxm_hf import NxMCallback, NxMConfig, verify
from nxm_hf.demo.task import make_pairs, make_tokenizer


@dataclass
class Script:
    """A model and a dataset in a form that SFTTrainer takes, by name or directory."""

    model_name_or_path: str | None = None
    dataset_name: str | None = None


def make_rows(count: int, seed: int) -> Dataset:
    """Return texts of made-up words; each says its sentence twice."""
    sentences = [row["sentence1"] for row in make_pairs(count, seed, negation=True)]
    return Dataset.from_dict({"text": [f"{sentence} {sentence}" for sentence in sentences]})


def make_model() -> tuple[Any, Any]:
    """Return a small Llama with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return AutoModelForCausalLM.from_config(config), tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, save and verify."""
    options: Any = (Script, NxMConfig, SFTConfig)
    script, sparsity, args = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    if script.dataset_name:
        rows = load_dataset(script.dataset_name)
    else:
        rows = DatasetDict(train=make_rows(2048, 1), test=make_rows(256, 2))
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        # In float32: small updates of weights in bfloat16 would round to nothing. `--bf16` computes in bfloat16.
        model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path, dtype=torch.float32)
    else:
        model, tokenizer = make_model()

    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=tokenizer,
        callbacks=[NxMCallback(sparsity)],
    )
    trainer.train()
    print(trainer.evaluate())  # of the sparse weights
    trainer.save_model()
    if not sparsity.is_dense:
        print(verify(args.output_dir).summary())


if __name__ == "__main__":
    main()
