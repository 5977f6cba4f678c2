"""How many rows are in memory at one time, and what saves memory, found by trying before training.

A forward and a backward of one row and of two, the longest there are, and of twice as many for as
long as these should fit, tell what a row takes; what fits follows from that. Where not even one row
does, the next saving is turned on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from jobs.finetuning import FinetuneStep
from jobs.problems import Problem
from jobs.training import Decision
from training.in_backward import is_exact
from training.least_memory import guess_least_bytes
from training.memory import MemoryGauge, fits
from training.micro_batch_search import find_micro_batch
from training.offloading import room_for_states
from training.optimizers import build_optimizer, embedding_names
from training.probing import LongestRows, Prober
from training.trainables import Trainable

#: What is guessed from shorter rows is guessed with a margin, and not from very short ones.
_MARGIN = 1.1
_LEAST_TOKENS = 16
#: A budget that is named is so much more than the one in which not one row was found to fit.
_LEAST_MORE = 1.02


@dataclass(frozen=True)
class Setting:
    """How a model is trained.

    Attributes:
        micro_batch_size: Rows in memory at one time.
        savings: What saves memory, in the order in which it was turned on.
        parameters: What is trained, by name.
        optimizer: Holds its states already.
        decisions: What was tried.
        larger_budget: One to name where not one row fits any more, in bytes.
    """

    micro_batch_size: int
    savings: tuple[str, ...]
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    decisions: tuple[Decision, ...]
    larger_budget: int

    def halved(self) -> "Setting":
        """Give the same with half of the rows at a time, after memory ran out all the same."""
        tried = Decision(
            micro_batch_size=self.micro_batch_size,
            savings=self.savings,
            peak_bytes=None,
            limit_bytes=self.decisions[-1].limit_bytes if self.decisions else 0,
            outcome="out_of_memory",
        )
        half = -(-self.micro_batch_size // 2)
        return replace(self, micro_batch_size=half, decisions=(*self.decisions, tried))


class Settler:
    """Finds the setting of a training.

    Args:
        trainable: The model.
        parameters: Those that are trained.
        step: What is asked for.
        longest_rows: Gives the rows that take most.
        gauge: Measures memory, and knows the limit.
    """

    def __init__(
        self,
        trainable: Trainable,
        parameters: Mapping[str, torch.nn.Parameter],
        step: FinetuneStep,
        longest_rows: LongestRows,
        gauge: MemoryGauge,
    ) -> None:
        self._trainable = trainable
        self._parameters = parameters
        self._step = step
        self._longest_rows = longest_rows
        self._gauge = gauge
        self._prober = Prober(trainable, step, longest_rows, gauge)

    def settle(self) -> Setting:
        """Find the first savings with which a row fits, and the most rows that do then.

        Returns:
            The setting; its optimizer's states and the parameters' gradients are in memory.

        Raises:
            Problem: `memory_budget_exceeded`: no row fits, whatever is turned on.
        """
        savings: tuple[str, ...] = ()
        waiting: list[str] = [*self._step.savings]
        while True:
            optimizer = self._begin(savings)
            if optimizer is not None:
                size = self._find_size(savings)
                if size is not None:
                    return self._setting(size, savings, optimizer)
            # What the optimizer holds is let go before anything else is tried.
            del optimizer
            self._let_go()
            added = self._next_saving(waiting)
            if added is None:
                raise self._refusal(self._least_bytes(savings))
            savings = (*savings, added)

    def take_up(
        self, micro_batch_size: int, savings: tuple[str, ...], decisions: tuple[Decision, ...]
    ) -> Setting:
        """Begin again with what an attempt before this one had found.

        Args:
            micro_batch_size: Rows at a time.
            savings: What was turned on.
            decisions: What had been tried.

        Returns:
            The setting, as of `settle`.

        Raises:
            Problem: `memory_budget_exceeded`: states and gradients do not fit any more.
        """
        for saving in savings:
            self._turn_on(saving)
        optimizer = self._begin(savings)
        if optimizer is None:
            raise self._refusal(self._least_bytes(savings))
        self._prober.decisions[:] = decisions
        return self._setting(micro_batch_size, savings, optimizer)

    def _setting(
        self, size: int, savings: tuple[str, ...], optimizer: torch.optim.Optimizer
    ) -> Setting:
        larger = self._gauge.budget_for(round(_MARGIN * self._gauge.limit_bytes))
        decisions = tuple(self._prober.decisions)
        return Setting(size, savings, self._parameters, optimizer, decisions, larger)

    def _begin(self, savings: tuple[str, ...]) -> torch.optim.Optimizer | None:
        """Put states and gradients into memory; None where there is no room for them."""
        made: list[torch.optim.Optimizer] = []
        has_8bit = "adamw8bit" in savings or self._step.optimizer == "adamw8bit"

        def begin() -> None:
            made.append(
                build_optimizer(
                    self._parameters,
                    self._step,
                    has_8bit_states=has_8bit,
                    embeddings=embedding_names(self._trainable.module),
                    is_offloaded="offload_optimizer" in savings,
                )
            )
            if "optimizer_in_backward" not in savings:
                for parameter in self._parameters.values():
                    parameter.grad = torch.zeros_like(parameter)
            if "offload_optimizer" in savings:
                # Nothing is tried of a step, which needs this room for each of them in turn.
                room_for_states(max(self._parameters.values(), key=torch.numel))

        # What stays for as long as training does is no part of the heap, in which it would leave
        # holes where it is let go of.
        self._gauge.return_freed_memory()
        if not fits(begin):
            self._prober.decide(1, savings, None)
            return None
        if "return_freed_memory" not in savings:
            self._gauge.keep_freed_memory()
        return made[0]

    def _let_go(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def _next_saving(self, waiting: list[str]) -> str | None:
        while waiting:
            saving = waiting.pop(0)
            if self._turn_on(saving):
                return saving
        return None

    def _turn_on(self, saving: str) -> bool:
        """Turn a saving on, and say whether it is one for this model and optimizer."""
        if saving == "return_freed_memory":
            return self._gauge.return_freed_memory()
        if saving == "activation_checkpointing":
            return self._trainable.checkpoint_activations()
        if saving == "lora":
            adapted = None if self._step.method == "lora" else self._trainable.adapt(self._step)
            self._parameters = adapted or self._parameters
            return adapted is not None
        if saving == "offload_optimizer":
            return self._gauge.has_host_beside
        if saving == "optimizer_in_backward":
            # Not one row fits otherwise, so rows come one by one.
            return is_exact(self._step, self._step.batch_size)
        return saving == "adamw8bit" and self._step.optimizer == "adamw"

    def _find_size(self, savings: tuple[str, ...]) -> int | None:
        return find_micro_batch(partial(self._peak_bytes, savings), self._step, self._gauge)

    def _peak_bytes(self, savings: tuple[str, ...], rows: int) -> int | None:
        return self._prober.probe(rows, savings, self._parameters).peak_bytes

    def _least_bytes(self, savings: tuple[str, ...]) -> int:
        """Give about what one row takes at its peak, from what parts of it take, or guessed."""
        tried = self._prober.decisions[-1]
        if tried.peak_bytes is not None:
            return tried.peak_bytes
        row = self._longest_rows(1)
        tokens = row["input_ids"].shape[1] if "input_ids" in row else 1
        held = self._gauge.held_bytes() + self._trainable.rounding_bytes
        least = self._least_by_parts(savings, row, tokens)
        # What is as large in every part of a row, such as a gradient, hides what grows with it.
        if least <= tried.limit_bytes:
            names = embedding_names(self._trainable.module)
            least = guess_least_bytes(held, self._parameters, names, self._step, savings, tokens)
        return max(least, round(_LEAST_MORE * tried.limit_bytes))

    def _least_by_parts(
        self, savings: tuple[str, ...], row: Mapping[str, torch.Tensor], tokens: int
    ) -> int:
        """Give about what a row takes, from what a quarter and half of it do; 0 where they fail."""
        if self._begin(savings) is None or tokens < _LEAST_TOKENS:
            return 0
        quarter, half = (
            self._prober.peak_of_part(row, tokens, length) for length in (tokens // 4, tokens // 2)
        )
        if quarter is None or half is None:
            return 0
        return round(half + _MARGIN * (half - quarter) * 2)

    def _refusal(self, least_bytes: int) -> Problem:
        tried = self._prober.decisions[-1]
        said = ", ".join(tried.savings) or "nothing"
        peak = "memory ran out" if tried.peak_bytes is None else f"it was {tried.peak_bytes} bytes"
        smallest = self._gauge.budget_for(least_bytes)
        return Problem(
            "memory_budget_exceeded",
            f"One row at a time does not fit: with {said} turned on {peak}, and "
            f"{tried.limit_bytes} are allowed. The smallest budget that fits is about {smallest}. "
            "Raise the budget, lower max_length, name more savings, or train fewer modules with "
            "include.",
            extra={"limit_bytes": tried.limit_bytes, "smallest_bytes": smallest},
        )
