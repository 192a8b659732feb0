"""The recipe `dense`: plain fine-tuning."""

from nxm_hf.methods import DenseTraining
from nxm_hf.patterns import Pattern


def dense(pattern: Pattern) -> DenseTraining:
    """Plain fine-tuning, the baseline: nothing is pruned, and the run equals `transformers.Trainer` bit for bit.

    Reference: Devlin et al., 2018, https://arxiv.org/abs/1810.04805
    Relations: every other recipe with the pattern "dense".
    """
    return DenseTraining(pattern)
