"""How far two models' outputs for the same inputs are apart.

Dimension key: N outputs, W values of one output.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name


@dataclass
class AgreementSum:
    """Sums over pairs of outputs, added batch by batch.

    Attributes:
        is_distribution: Whether outputs are logits, of which divergence and first choices are
            compared too.
        outputs: How many pairs there were.
    """

    is_distribution: bool
    outputs: int = 0
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
        before, after = before.double(), after.double()
        # Two outputs of zeros agree; one alone has no direction, and does not.
        cosine = F.cosine_similarity(before, after, dim=1)
        cosine = torch.where((before == after).all(dim=1), 1.0, cosine)
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
        return self._cosine / self.outputs

    @property
    def least_cosine(self) -> float:
        """The smallest cosine similarity of any pair."""
        return self._least_cosine

    @property
    def mean_divergence(self) -> float | None:
        """Mean Kullback-Leibler divergence of the artifact from the original, in nats."""
        return max(0.0, self._divergence / self.outputs) if self.is_distribution else None

    @property
    def same_choices(self) -> float | None:
        """Fraction of outputs with the same first choice."""
        return self._same_choices / self.outputs if self.is_distribution else None
