"""What a recipe is predicted to lose of a model, as one number.

It is the root of the mean, over all weights that some recipe could round, of the squared error over
the squared weight: 0 for a weight that stays as it is, its rounding error for one that becomes
int8, and for one that loses channels the share of its squares that goes with them as well. Every
weight counts the same, however large it is: what a layer gives its successors is wrong by about as
much as its own weight is, relative to it. It is the sum that `planning.sensitivity` makes small.
"""

import math
from collections.abc import Collection

from jobs.sensitivities import Sensitivities, Variant


def loss_of(found: Sensitivities, variant: Variant, quantized: Collection[str]) -> float:
    """Predict what a recipe loses.

    Args:
        found: What was measured of the model.
        variant: Of that, what belongs to the recipe: its width and group size.
        quantized: Names of the weights that it rounds.

    Returns:
        The loss: 0 where nothing changes, 1 where nothing is left. Of a recipe that does not
        shrink, it is the root mean square of the `relative_rmse` that its report will give, those
        weights that stay float counting as 0.
    """
    total = 0.0
    for name, whole in found.whole.weights.items():
        left = variant.weights.get(name)
        if left is None or not whole.energy:
            continue
        kept = min(1.0, left.energy / whole.energy) if variant.width else 1.0
        rounded = left.relative_rmse**2 if name in quantized else 0.0
        total += (1 - kept) + kept * rounded
    return math.sqrt(total / len(found.whole.weights))
