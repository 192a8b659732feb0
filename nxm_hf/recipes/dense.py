"""The recipe `dense`: plain fine-tuning."""

from nxm_hf.methods import DenseTraining
from nxm_hf.patterns import Pattern


def dense(pattern: Pattern) -> DenseTraining:
    """Fine-tune without pruning, as the baseline; the run equals `transformers.Trainer` bit for bit.

    Reference: Devlin et al., 2018, https://arxiv.org/abs/1810.04805
    Relations: every other recipe with the pattern "dense".

    Args:
        pattern: The pattern; it is not applied while training.
    """
    return DenseTraining(pattern)
