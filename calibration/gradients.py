"""How much a model's loss would change without a head or channel, to first order: by Taylor.

For each batch of rows, importance is the sum of |weight times gradient| over all weights that would
go with a head or channel, and the importances of batches are added. That is the first-order measure
of Molchanov et al., 2019, arXiv:1906.10771, section 3.1, of single weights rather than of their
sum, as LLM-Pruner has it for groups (Ma et al., 2023, arXiv:2305.11627, section 3.2, equation 5).

Gradients of a weight are looked at as soon as they are there, and let go, so all that is in memory
beside the model is what a batch left on its way forward.

Dimension key: U heads or channels of one layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import save_file

from evaluation.faults import blamed_on
from evaluation.inputs import Batch
from evaluation.outputs import UNTOLD, is_causal, next_tokens
from evaluation.skeletons import Skeleton
from jobs.problems import Problem
from planning.cuts import Cut, Shrinkage

#: Weights that are multiplied with their gradients at a time.
_MOST_VALUES = 1024**2


def measure_gradients(
    skeleton: Skeleton,
    batches: Sequence[Batch],
    shrinkage: Shrinkage,
    folder: Path,
    on_batches: Callable[[int, int], None],
) -> int:
    """Measure the importance of every head and channel that could be left out.

    Args:
        skeleton: The model as it came; all of it is in memory afterwards.
        batches: The data.
        shrinkage: What is to be left of it.
        folder: Where the importances go, float64 [U] by the name of a group.
        on_batches: Told how many batches are done, and how many there are.

    Returns:
        0: no block was in memory without the others.

    Raises:
        Problem: `invalid_dataset`: the data say nothing of what is right, or are not taken;
            `evaluation_failed`: the model has no loss, or a gradient is no number.
    """
    totals = {g.name: torch.zeros(g.count, dtype=torch.float64) for g in shrinkage.groups}
    cuts = {cut.source.name: cut for cut in shrinkage.cuts.values()}
    for block in skeleton.blocks:
        skeleton.load(block)
        for name, stored in block.weights.items():
            if stored in cuts:
                weight = skeleton.model.get_parameter(name)
                weight.requires_grad_(True)
                weight.register_post_accumulate_grad_hook(partial(_take, cuts[stored], totals))
    name = type(skeleton.model).__name__
    for i, batch in enumerate(batches):
        with blamed_on("invalid_dataset", f"A {name} does not take the rows"):
            output = skeleton.model(**batch.inputs)
            torch.autograd.backward(loss_of(skeleton.model, batch, output))
        on_batches(i + 1, len(batches))
    for group, total in totals.items():
        if not bool(torch.isfinite(total).all()):
            raise Problem("evaluation_failed", f"A gradient of {group} holds a NaN or an infinity.")
    if totals:
        save_file(totals, folder / "00000.safetensors")
    return 0


def loss_of(model: torch.nn.Module, batch: Batch, output: object) -> torch.Tensor:
    """Give the mean cross-entropy of a batch.

    Args:
        model: A causal language model, whose loss is that of each token after those before it, or
            one whose rows have labels.
        batch: What it was given.
        output: What it gave.

    Returns:
        The loss, a scalar that knows how it came to be.

    Raises:
        Problem: `invalid_dataset`: nothing says what would be right.
    """
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor) and batch.labels is not None and logits.ndim == 2:
        return F.cross_entropy(logits.float(), batch.labels)
    if isinstance(logits, torch.Tensor) and logits.ndim == 3 and is_causal(model):
        targets = next_tokens(batch)
        if bool((targets != UNTOLD).any()):
            return F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=UNTOLD
            )
    raise Problem(
        "invalid_dataset",
        f"importance: taylor needs a loss: a causal language model and rows of two tokens or more, "
        f"or a classifier and labels; this is a {type(model).__name__}, and its rows have "
        f"{'no ' if batch.labels is None else ''}labels. importance: activation needs none.",
    )


def _take(cut: Cut, totals: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
    """Add up what a batch says of a weight, and let go of its gradient."""
    gradient, weight.grad = weight.grad, None
    if gradient is None:
        return
    sums = _sums(weight.detach(), gradient, cut.axis)
    count = cut.group.count
    for part in cut.parts:
        own = sums[part.start : part.start + count * part.width]
        totals[cut.group.name] += own.view(count, part.width).sum(1)


def _sums(weight: torch.Tensor, gradient: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum |weight times gradient| over all axes but one, in float64."""
    if weight.ndim == 1:
        return (weight.double() * gradient.double()).abs()
    rows = max(1, _MOST_VALUES // weight.shape[1])
    products = (
        (weight[first : first + rows].float() * gradient[first : first + rows].float()).abs()
        for first in range(0, len(weight), rows)
    )
    if axis == 0:
        return torch.cat([product.sum(1, dtype=torch.float64) for product in products])
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for product in products:
        total += product.sum(0, dtype=torch.float64)
    return total
