"""How far two models' outputs for the same inputs are apart.

Dimension key: N outputs, W values of one output.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

#: Compared at a time, as several times as many doubles.
_MOST_VALUES = 1024**2


@dataclass
class AgreementSum:
    """Sums over pairs of outputs, added batch by batch.

    Attributes:
        is_distribution: Whether outputs are logits, of which divergence and first choices are
            compared too.
        is_single: Whether an output is one value, as a score is: then all of them together are
            compared as one vector.
        outputs: How many pairs there were.
    """

    is_distribution: bool
    is_single: bool = False
    outputs: int = 0
    _products: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _cosine: float = 0.0
    _least_cosine: float = 1.0
    _divergence: float = 0.0
    _same_choices: int = 0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Compare outputs.

        Args:
            before: The original's, [N, W].
            after: The artifact's, [N, W].
        """
        rows = max(1, _MOST_VALUES // before.shape[1])
        for first in range(0, len(before), rows):
            part = slice(first, first + rows)
            self._add(before[part].double(), after[part].double())

    def _add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        if self.is_single:
            self.outputs += len(before)
            new = (before * after).sum(), (before * before).sum(), (after * after).sum()
            old = self._products
            self._products = (
                old[0] + float(new[0]),
                old[1] + float(new[1]),
                old[2] + float(new[2]),
            )
            return
        # Two outputs of zeros agree; one alone has no direction, and does not.
        cosine = F.cosine_similarity(before, after, dim=1)
        cosine = torch.where((before == after).all(dim=1), 1.0, cosine).clamp(-1, 1)
        self.outputs += len(before)
        self._cosine += float(cosine.sum())
        self._least_cosine = min(self._least_cosine, float(cosine.min()))
        if self.is_distribution:
            expected, found = before.log_softmax(1), after.log_softmax(1)
            self._divergence += float(F.kl_div(found, expected, reduction="sum", log_target=True))
            self._same_choices += int((before.argmax(1) == after.argmax(1)).sum())

    @property
    def mean_cosine(self) -> float:
        """Mean cosine similarity; within 1e-12 of the exact mean."""
        if self.is_single:
            return self._of_all()
        return min(1.0, self._cosine / self.outputs)

    @property
    def least_cosine(self) -> float:
        """The smallest cosine similarity of any pair."""
        return self._of_all() if self.is_single else self._least_cosine

    def _of_all(self) -> float:
        product, before, after = self._products
        if before == after == product:
            return 1.0
        return max(-1.0, min(1.0, product / (before * after) ** 0.5)) if before * after else 0.0

    @property
    def mean_divergence(self) -> float | None:
        """Mean Kullback-Leibler divergence of the artifact from the original, in nats."""
        return max(0.0, self._divergence / self.outputs) if self.is_distribution else None

    @property
    def same_choices(self) -> float | None:
        """Fraction of outputs with the same first choice."""
        return self._same_choices / self.outputs if self.is_distribution else None
