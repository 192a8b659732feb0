"""Prune a model without training, from a few hundred texts.

    python prune_without_training.py --model_name_or_path Qwen/Qwen2.5-0.5B \
        --calibration train.txt --evaluation test.txt --output_dir qwen-2of4

Without a model it makes a small one and its texts by code. `nxm prune` does the same from a shell, and can continue a
job that was killed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, LlamaConfig

from nxm_hf import prune, verify
from nxm_hf.demo.task import make_pairs, make_tokenizer


@dataclass
class Script:
    """A causal language model by name or directory, texts, and what to do with them."""

    model_name_or_path: str | None = None
    calibration: str | None = None  # a .txt, .parquet, .csv, .tsv or .jsonl file, or the name of a dataset
    evaluation: str | None = None  # a text, whose perplexity is computed before and after
    pattern: str = "2:4"
    method: str | None = None  # by default "alps" with calibration data, and "magnitude" without
    output_dir: str = "pruned"


def make_model() -> tuple[Any, Any]:
    """Return a small Llama with its tokenizer."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.sep_token_id,
    )
    return AutoModelForCausalLM.from_config(config), tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune, save and verify."""
    options: Any = Script
    (script,) = HfArgumentParser(options).parse_args_into_dataclasses(arguments)
    calibration, evaluation = script.calibration, script.evaluation
    if script.model_name_or_path:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(script.model_name_or_path)
    else:
        model, tokenizer = make_model()
        calibration = calibration or [row["sentence1"] for row in make_pairs(128, seed=1, negation=True)]
        evaluation = evaluation or [row["sentence1"] for row in make_pairs(128, seed=2, negation=True)]

    result = prune(model, script.pattern, script.method, calibration, tokenizer, evaluation=evaluation)
    print(result)
    model.save_pretrained(script.output_dir)
    tokenizer.save_pretrained(script.output_dir)
    print(verify(script.output_dir).summary())


if __name__ == "__main__":
    main()
