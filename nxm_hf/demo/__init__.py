"""The main job on made-up data: fine-tune a small BERT dense and sparse, without a network."""

from nxm_hf.demo.run import run_demo
from nxm_hf.demo.task import make_config, make_pairs, make_tokenizer

__all__ = ["make_config", "make_pairs", "make_tokenizer", "run_demo"]
