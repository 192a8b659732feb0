"""The result of a verification: the zeros of each layer, and what is wrong with them. It prints as a table."""

from dataclasses import dataclass
from typing import Any

from nxm_hf.patterns import Pattern
from nxm_hf.storage.manifest import RESTORE
from nxm_hf.text import table


@dataclass(frozen=True)
class VerifiedLayer:
    """Describe the zeros of one layer.

    Args:
        name: Name of the layer.
        role: Role of the layer, such as "query".
        shape: Shape of its matrix, [out, in].
        pattern: The pattern that it must hold.
        nonzeros: Number of entries that are not zero.
        violations: Number of places that break the pattern.
        negative_zeros: Number of zeros that are -0.0.
        not_finite: Number of entries that are NaN.
    """

    name: str
    role: str
    shape: tuple[int, int]
    pattern: Pattern
    nonzeros: int
    violations: int
    negative_zeros: int
    not_finite: int

    @property
    def numel(self) -> int:
        """Return the number of entries."""
        return self.shape[0] * self.shape[1]

    @property
    def density(self) -> float:
        """Return the fraction of entries that are not zero."""
        return self.nonzeros / max(self.numel, 1)

    @property
    def problems(self) -> list[str]:
        """Return a sentence for each problem of the layer."""
        counts = (
            (self.violations, f"breaks {self.pattern} in {self.violations} places"),
            (self.negative_zeros, f"holds {self.negative_zeros} zeros that are -0.0"),
            (self.not_finite, f"holds {self.not_finite} entries that are NaN"),
        )
        return [f"{self.name} {what}." for count, what in counts if count]


@dataclass(frozen=True)
class Verification:
    """Describe the zeros of all layers of a model. It prints as a table.

    Args:
        layers: The result of each layer.
        absent: Names of layers that are recorded as sparse, but which the model does not have.
        note: A remark on what was verified, such as the base model of an adapter; "" without one.
        changed: Files of the directory that differ from its manifest, each with what is wrong with it.
    """

    layers: tuple[VerifiedLayer, ...]
    absent: tuple[str, ...] = ()
    note: str = ""
    changed: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Return True if every layer holds its pattern with true +0.0 zeros."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Return a sentence for each problem of the model."""
        problems = [f"{name} {what}." for name, what in self.changed]
        problems += [problem for layer in self.layers for problem in layer.problems]
        problems += [f"{name} is recorded as sparse, and the model has no such layer." for name in self.absent]
        return problems or ([] if self.layers else ["No layer was found to verify."])

    @property
    def density(self) -> float:
        """Return the fraction of the entries of all layers that are not zero."""
        return sum(layer.nonzeros for layer in self.layers) / max(sum(layer.numel for layer in self.layers), 1)

    def raise_for_problems(self) -> None:
        """Raise a ValueError that lists the problems, if there are any.

        Raises:
            ValueError: If `ok` is False.
        """
        if not self.ok:
            shown = "\n".join(f"  {problem}" for problem in self.problems[:12])
            advice = (
                RESTORE
                if self.changed
                else "Were they trained on without nxm_hf? NxMTrainer(..., sparsity=...) prunes them again."
            )
            if any(layer.not_finite for layer in self.layers):
                advice = (
                    "The training has diverged. Lower the learning rate, or go back to a checkpoint before the NaN."
                )
            raise ValueError(
                f"{len(self.problems)} problems in the weights to deploy; nothing was written:\n{shown}\n{advice}"
            )

    def summary(self) -> "VerificationSummary":
        """Return the same with one line for each role and pattern."""
        return VerificationSummary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all that was found as a dict that JSON can hold."""
        layers = [{**vars(x), "pattern": str(x.pattern), "density": x.density} for x in self.layers]
        return {**self._findings(), "layers": layers}

    def _findings(self) -> dict[str, Any]:
        """Return what holds for all layers together."""
        return {"ok": self.ok, "density": self.density, "problems": self.problems, "note": self.note}

    def __str__(self) -> str:
        rows = [
            (x.name, x.role, f"{x.shape[0]}x{x.shape[1]}", str(x.pattern), f"{x.density:.4f}", _mark(bool(x.problems)))
            for x in self.layers
        ]
        return f"{table(('layer', 'role', 'shape', 'pattern', 'density', ''), rows)}\n{self._verdict()}"

    def _verdict(self) -> str:
        """Return the last lines of a table: the verdict, and each problem."""
        verdict = "ok" if self.ok else f"{len(self.problems)} problems"
        lines = [f"{len(self.layers)} layers, density {self.density:.4f}: {verdict}", *self.problems]
        if self.changed:
            lines.append(RESTORE)
        if any(layer.violations for layer in self.layers):
            lines.append("A plain Trainer fills zeros again; NxMTrainer(model=...) without sparsity= keeps them.")
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


@dataclass(frozen=True)
class VerificationSummary:
    """Show a verification with one line for each role and pattern. It prints as a table.

    Args:
        verification: The verification of all layers.
    """

    verification: Verification

    def groups(self) -> list[dict[str, Any]]:
        """Return one dict for each role and pattern: its layers, density and layers with problems."""
        by_kind: dict[tuple[str, str], list[VerifiedLayer]] = {}
        for layer in self.verification.layers:
            by_kind.setdefault((layer.role, str(layer.pattern)), []).append(layer)
        return [
            {
                "role": role,
                "pattern": pattern,
                "layers": len(layers),
                "density": Verification(tuple(layers)).density,
                "layers_with_problems": sum(bool(layer.problems) for layer in layers),
            }
            for (role, pattern), layers in by_kind.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as a dict that JSON can hold."""
        return {**self.verification._findings(), "groups": self.groups()}

    def __str__(self) -> str:
        rows = [
            (x["role"], x["pattern"], str(x["layers"]), f"{x['density']:.4f}", _mark(x["layers_with_problems"]))
            for x in self.groups()
        ]
        return f"{table(('role', 'pattern', 'layers', 'density', ''), rows)}\n{self.verification._verdict()}"


def _mark(problems: int) -> str:
    """Return the last cell of a row of a table. The problems themselves are listed below it, once."""
    return "PROBLEM" if problems else ""
