"""The CPU time of `optimizer.step()`: forms of AdamW, and recipes with torch's fused AdamW and with `nxm_hf.AdamW`.

    python benchmarks/adamw.py --model path/to/all-MiniLM-L6-v2
    python benchmarks/adamw.py --recipe asp "ste settle=0.9" rigl --steps 50

Copies of a model take steps in turn. Gradients are random numbers and not computed from a loss, so only the step is
measured. Times are CPU time of the process, and medians. "over fused" is the time over that of a plain step of
`torch.optim.AdamW(fused=True)` in the same turns. "MB" counts the bytes of all moments that the optimizer holds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

import nxm_hf
from benchmarks.overhead import config_of, load
from nxm_hf.engine.kept_state import MOMENTS, KeptState
from nxm_hf.text import table

Optimizer = Callable[..., torch.optim.Optimizer]
WARMUP = 4  # steps that are not counted: kernels are compiled, moments made and zeros looked at
FORMS: dict[str, tuple[Optimizer, dict[str, bool]]] = {
    "torch, fused": (torch.optim.AdamW, {"fused": True}),
    "torch, by default": (torch.optim.AdamW, {}),
    "torch, foreach": (torch.optim.AdamW, {"foreach": True}),
    "nxm_hf": (nxm_hf.AdamW, {}),
    "nxm_hf, dense moments": (nxm_hf.AdamW, {"kept_moments": False}),
}


class Side:
    """A copy of a model, its optimizer, and gradients that stay as they are.

    Args:
        model: The model.
        form: The name of a form of AdamW.
        recipe: A recipe with its settings, or None for a plain training.
        steps: How many steps will be taken.
    """

    def __init__(self, model: nn.Module, form: str, recipe: str | None, steps: int):
        self.model, self.form, self.recipe = deepcopy(model), form, recipe
        make, settings = FORMS[form]
        self.optimizer = make(self.model.parameters(), lr=2e-5, weight_decay=0.01, **settings)
        noise = torch.Generator().manual_seed(0)
        self.gradients = [torch.randn(each.shape, generator=noise) * 1e-3 for each in self.model.parameters()]
        if recipe is not None:
            nxm_hf.attach(self.model, self.optimizer, config_of(recipe), total_steps=2 * steps)
        self.seconds: list[float] = []

    def step(self) -> None:
        """Take a step, and note its CPU seconds."""
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient
        begin = time.process_time()
        self.optimizer.step()
        self.seconds.append(time.process_time() - begin)

    @property
    def median(self) -> float:
        """Return the median of the steps that count."""
        return statistics.median(self.seconds[WARMUP:])

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's moments."""
        states = self.optimizer.state.values()
        return sum(
            state.nbytes if isinstance(state, KeptState) else sum(state[name].nbytes for name in MOMENTS)
            for state in states
        )


def measure(model: nn.Module, recipe: str | None, steps: int) -> list[tuple[str, ...]]:
    """Return rows of the table: recipe, form, milliseconds, the time over plain fused steps, and megabytes of moments.

    Args:
        model: The model.
        recipe: A recipe with its settings, or None for all forms of plain AdamW.
        steps: How many steps count.
    """
    kinds: list[tuple[str, str | None]] = [(form, None) for form in FORMS]
    if recipe is not None:
        kinds = [
            ("torch, fused", None),
            *((form, recipe) for form in ("torch, fused", "nxm_hf, dense moments", "nxm_hf")),
        ]
    sides = [Side(model, form, name, WARMUP + steps) for form, name in kinds]
    for number in range(WARMUP + steps):
        for i in range(len(sides)):
            sides[(i + number) % len(sides)].step()
    return [
        (
            side.recipe or "none",
            side.form,
            f"{side.median * 1e3:.1f}",
            f"{side.median / sides[0].median:.3f}",
            f"{side.state_bytes / 1e6:.1f}",
        )
        for side in sides
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base", help='directory of a model, or "bert-base"')
    parser.add_argument("--recipe", nargs="+", default=["asp"], help="recipes, each with its settings")
    parser.add_argument("--steps", type=int, default=30, help="steps of each side that count")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load(options.model)
    rows = [row for recipe in [None, *options.recipe] for row in measure(model, recipe, options.steps)]
    print(table(("recipe", "AdamW", "ms", "over fused", "MB"), rows))


if __name__ == "__main__":
    main()
