"""Which tokens of a row a masked language model has to guess.

BERT's way (arXiv 1810.04805, section 3.1): of the tokens that are no special ones 15 % are chosen;
of these 80 % are hidden, 10 % become any other, 10 % stay. Unlike there, every epoch chooses anew,
and what is chosen depends on the row and the epoch alone, not on the micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.inputs import MASK
from training.rows import LABELS

_CHOSEN, _HIDDEN, _OTHER = 0.15, 0.8, 0.9
_IGNORED = -100


@dataclass(frozen=True)
class Masking:
    """What a model's tokenizer says about hiding tokens.

    Attributes:
        mask_token: Stands where a token is hidden.
        special_tokens: Are never chosen.
        vocabulary: How many tokens there are.
    """

    mask_token: int
    special_tokens: tuple[int, ...]
    vocabulary: int

    def hide(
        self, fields: Mapping[str, torch.Tensor], numbers: Sequence[int], seed: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Hide tokens of a batch.

        Args:
            fields: The batch, with `input_ids` [B, T].
            numbers: The numbers of its rows.
            seed: What decides beside these.

        Returns:
            The batch with some of its tokens replaced, and `labels` [B, T]: what they were, -100
            for those that were not chosen. Of every row that has a token at all, one is.
        """
        ids = fields["input_ids"].clone()
        targets = torch.full_like(ids, _IGNORED)
        known = fields[MASK].bool() if MASK in fields else torch.ones_like(ids, dtype=torch.bool)
        known &= ~torch.isin(ids, torch.tensor(self.special_tokens, dtype=ids.dtype))
        for row, number in enumerate(numbers):
            places = known[row].nonzero()[:, 0].numpy()
            generator = np.random.default_rng([*seed, number])
            count = min(len(places), max(1, round(_CHOSEN * len(places))))
            chosen = generator.choice(places, count, replace=False)
            kinds = generator.random(count)
            others = generator.integers(self.vocabulary, size=count)
            targets[row, chosen] = ids[row, chosen]
            ids[row, chosen[kinds < _HIDDEN]] = self.mask_token
            is_other = (kinds >= _HIDDEN) & (kinds < _OTHER)
            ids[row, chosen[is_other]] = torch.from_numpy(others[is_other]).to(ids.dtype)
        return {**fields, "input_ids": ids, LABELS: targets}
