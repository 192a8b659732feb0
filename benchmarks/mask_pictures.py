"""Draw masks: of each pattern, and of each recipe over a short training.

    python benchmarks/mask_pictures.py

It writes `docs/images/masks-of-patterns.svg` and `docs/images/masks-over-time.svg`. The training is that of a small
encoder towards the outputs of another one, in 60 steps on a CPU; it takes a few seconds.
"""

from html import escape
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from nxm_hf import NxMConfig, attach
from nxm_hf.patterns import parse

IMAGES = Path(__file__).parents[1] / "docs/images"
PATTERNS = ("2:4", "1:4", "4:8", "4:8-transposable", "unstructured:0.5", "block:4:0.5")
ROWS, INPUTS = 8, 16  # of the weight that shows the patterns
# Each recipe with what it needs to show itself in so few steps.
RECIPES = (
    ("asp", NxMConfig("asp")),
    ("alps", NxMConfig("alps")),
    ("gradual", NxMConfig("gradual", settings={"every": 15})),
    ("acdc", NxMConfig("acdc", settings={"period": 0.2})),
    ("set", NxMConfig("set", settings={"every": 10})),
    ("rigl", NxMConfig("rigl", settings={"every": 10})),
    ("ste", NxMConfig("ste")),
    ("sr-ste", NxMConfig("sr-ste", settings={"decay": 0.02})),
    ("fix", NxMConfig("fix")),
    ("reset", NxMConfig("reset", settings={"every": 15})),
    ("regularize", NxMConfig("regularize", settings={"shrink": 0.05})),
    ("mask-decay", NxMConfig("mask-decay")),
    ("structure-decay", NxMConfig("structure-decay")),
    ("admm", NxMConfig("admm", settings={"scores": "fisher"})),
    ("fade", NxMConfig("fade")),
)
STEPS, SHOWN = 60, 16  # steps of a training, and weights of it that are shown: four groups of 2:4
LEVELS = 4  # of darkness
WIDTH, LEFT, CELL = 440, 134, 4.8
STYLE = """
svg { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1f2328; }
.page { fill: #ffffff; stroke: #d1d9e0; } .paper { fill: #eef0f3; } .kept { fill: #4051b5; } .line { fill: #ffffff; }
.note { font-size: 13px; fill: #59636e; }
.k1 { opacity: 0.25; } .k2 { opacity: 0.5; } .k3 { opacity: 0.75; } .k4 { opacity: 1; }
@media (prefers-color-scheme: dark) {
  svg { fill: #f0f6fc; } .page { fill: #151b23; stroke: #3d444d; } .paper { fill: #2a313a; } .kept { fill: #8d9bf5; }
  .line { fill: #151b23; } .note { fill: #9198a1; }
}
"""


def mask_of(pattern: str) -> list[list[int]]:
    """Return the mask of a pattern on a weight of random numbers, with 1 for what is kept.

    Args:
        pattern: The pattern.
    """
    weight = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(0))
    return parse(pattern).mask(weight.abs()).int().tolist()


def weights_over_time(config: NxMConfig) -> list[list[int]]:
    """Train, and return how large some weights of the model were after each step.

    Args:
        config: The recipe.

    Returns:
        For each weight that is shown, and each step, 0 for a zero and up to `LEVELS` for large ones.
    """
    torch.manual_seed(0)
    model, teacher = _encoder(), _encoder()
    inputs = torch.randn(256, 4, 16)
    targets = teacher(inputs).detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    engine = attach(model, optimizer, config, total_steps=STEPS)
    shown = []
    for step in range(STEPS):
        rows = torch.arange(32) + 32 * (step % 8)
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        shown.append(model.layers[0].linear1.weight.detach().flatten()[:SHOWN].abs().clone())
    engine.finish()
    return levels(torch.stack(shown, dim=1))


def levels(sizes: Tensor) -> list[list[int]]:
    """Return 0 for zeros, and 1 to `LEVELS` for other numbers, where the largest tenth has the last.

    Args:
        sizes: Numbers that are not negative.
    """
    top = torch.quantile(sizes[sizes > 0], 0.9)
    steps = (sizes / top * LEVELS).ceil().clamp(1, LEVELS)
    return torch.where(sizes == 0, 0, steps).int().tolist()


def draw_patterns() -> str:
    """Return the picture of the patterns as SVG."""
    shapes, cell, gap = [], 11.0, 22
    wide = int(INPUTS * cell)
    for number, pattern in enumerate(PATTERNS):
        x, y = 20 + number % 2 * (wide + 2 * gap), 30 + number // 2 * (ROWS * cell + 46)
        shapes += [_text(x, y, pattern), _cells(mask_of(pattern), x, y + 8, cell, cell)]
        group = 8 if pattern.startswith("4:8") else 4
        if not pattern.startswith("unstructured"):
            shapes += [_line(x + column * cell, y + 8, 2, ROWS * cell) for column in range(group, INPUTS, group)]
    bottom = int(30 + (len(PATTERNS) + 1) // 2 * (ROWS * cell + 46))
    shapes.append(_text(20, bottom - 8, "Rows are outputs, columns are inputs. Dark weights are kept.", "note"))
    return _page(bottom + 10, f"Masks of {', '.join(PATTERNS)} on a weight of 8 outputs and 16 inputs", shapes)


def draw_recipes(drawn: list[tuple[str, list[list[int]]]]) -> str:
    """Return the picture of the recipes as SVG.

    Args:
        drawn: The name of each recipe, and how large its weights were.
    """
    shapes, y, height = [], 20, 3.0
    for name, weights in drawn:
        shapes += [_text(20, y + 29, name), _cells(weights, LEFT, y, CELL, height)]
        shapes += [_line(LEFT, y + row * height - 0.5, STEPS * CELL, 1) for row in range(4, SHOWN, 4)]
        y += int(SHOWN * height) + 10
    shapes.append(_text(LEFT, y + 12, "start", "note"))
    shapes.append(_text(LEFT + round(STEPS * CELL), y + 12, "end of training", "note", "end"))
    label = f"What the model computes with, over a training by {', '.join(name for name, _ in drawn)}"
    return _page(y + 26, label, shapes)


def _encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def _cells(rows: list[list[int]], x: float, y: float, wide: float, high: float) -> str:
    """Return a rectangle for all cells, and one path for the cells of each darkness."""
    paper = f'<rect class="paper" x="{x:g}" y="{y:g}" width="{len(rows[0]) * wide:g}" height="{len(rows) * high:g}"/>'
    paths: dict[int, list[str]] = {}
    for row, values in enumerate(rows):
        column = 0
        for value, run in groupby(values):
            length = len(list(run))
            if value:
                left, top = x + column * wide, y + row * high
                paths.setdefault(value, []).append(f"M{left:g} {top:g}h{length * wide:g}v{high:g}h-{length * wide:g}z")
            column += length
    most = max(paths) if max(paths) > 1 else None
    shown = [
        f'<path class="kept{f" k{value}" if most else ""}" d="{"".join(d)}"/>' for value, d in sorted(paths.items())
    ]
    return "".join([paper, *shown])


def _line(x: float, y: float, wide: float, high: float) -> str:
    left = x - wide / 2 if wide == 2 else x
    return f'<rect class="line" x="{left:g}" y="{y:g}" width="{wide:g}" height="{high:g}"/>'


def _text(x: int, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _page(height: int, label: str, shapes: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(label)}">'
    )
    page = f'<rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", page, *shapes, "</svg>\n"])


if __name__ == "__main__":
    (IMAGES / "masks-of-patterns.svg").write_text(draw_patterns())
    pictures = [(name, weights_over_time(config)) for name, config in RECIPES]
    (IMAGES / "masks-over-time.svg").write_text(draw_recipes(pictures))
