"""Count what is out of a case's hosts and loss, for its record and the report; the names are file formats."""

import math
from collections.abc import Sequence

TAKEN_OUT = "voxels taken out with their margin", "cases with voxels taken out"
SUSPECTS = "ml of suspects", "cases with suspects"
HOLES = "ml of holes", "cases with holes"
ISLANDS = "ml of islands", "cases with islands"
UNANNOTATED = "voxels of unannotated classes", "cases with unannotated classes"


def milliliters(voxels: int, spacing_mm: Sequence[float]) -> float:
    """Return the volume of some voxels."""
    return round(float(voxels) * math.prod(spacing_mm) / 1000, 3)


def counted(*amounts: tuple[tuple[str, str], float]) -> dict[str, float]:
    """Return the counts of one case: each amount that is not zero, and the case itself.

    Args:
        amounts: pairs of the names above and a number of voxels or milliliters.
    """
    counts: dict[str, float] = {}
    for (amount, cases), number in amounts:
        if number:
            counts |= {cases: 1.0, amount: float(number)}
    return counts
