"""Int8 rounding as torch operations, for a device that is not the processor.

Dimension key: R rows of a chunk, W values of each, G groups of inputs with a scale of their own.

Every operation is exact or rounded as IEEE 754 says, so the results have the bytes that
`rounding_kernels` gives; a test compares them. Pruning stays with the processor: its loops pass
over a chunk faster than a bus would carry it. Each thread has kernels of its own, with a stream and
pinned buffers of their own, so one thread's copies overlap with what the device does for another.
Only this module of the streaming core imports torch.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from engine import column_kernels
from engine.compilation import Bits, Bytes, Integer, Tallies
from engine.float_kernels import BF16, F16
from engine.kernels import ProcessorKernels
from jobs.problems import Problem
from jobs.report import DeviceMemory

_SIGNED = {2: np.int16, 4: np.int32}


class TorchKernels:
    """Computes on a torch device; what prunes is left to the processor.

    Args:
        device: Its name, such as ``cuda`` or ``cpu``.
        limit_bytes: The most that the process may reserve on a GPU; None for all there is. Rounding
            that would need more raises `memory_budget_exceeded`, or `out_of_memory`.

    Attributes:
        count_equal: As on the processor, and so are the next four.
        erase_smallest: See there.
        erase_in_rows: See there.
        erase_in_groups: See there.
        erase_two_of_four: See there.
    """

    count_equal = staticmethod(ProcessorKernels.count_equal)
    erase_smallest = staticmethod(ProcessorKernels.erase_smallest)
    erase_in_rows = staticmethod(ProcessorKernels.erase_in_rows)
    erase_in_groups = staticmethod(ProcessorKernels.erase_in_groups)
    erase_two_of_four = staticmethod(ProcessorKernels.erase_two_of_four)

    def __init__(self, device: str, limit_bytes: int | None = None) -> None:
        self._device = torch.device(device)
        self._limit_bytes = limit_bytes
        self._is_cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        if self._is_cuda and limit_bytes is not None:
            _, total = torch.cuda.mem_get_info(self._device)
            torch.cuda.set_per_process_memory_fraction(min(1, limit_bytes / total), self._device)

    def allocate(self, nbytes: int) -> Bytes:
        """Give pinned memory, zeroed, which the device copies on its own."""
        memory = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=self._is_cuda)
        array: Bytes = memory.numpy()
        return array

    def round_rows(
        self,
        before: Bits,
        after: Bits,
        is_pruned: bool,
        kind: Integer,
        mask: Integer,
        group_size: Integer,
        stored: Bits,
        flip: Integer,
        rounded: Bytes,
        scratch: Bits,  # noqa: ARG002 - the device has its own memory
        tallies: Tallies,
    ) -> None:
        """Round to int8; see `rounding_kernels.round_rows`."""
        try:
            found = self._round(
                before, after, is_pruned, kind, mask, group_size, stored, flip, rounded
            )
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        tallies[1:4] += found[:3]
        tallies[4] = max(tallies[4], found[3])

    def _round(
        self,
        before: Bits,
        after: Bits,
        is_pruned: bool,
        kind: Integer,
        mask: Integer,
        group_size: Integer,
        stored: Bits,
        flip: Integer,
        rounded: Bytes,
    ) -> list[float]:
        rows, width = after.shape
        groups = (rows, width // int(group_size), int(group_size))
        with self._on_stream():
            pattern = self._upload(after)
            peaks = (pattern & int(mask)).view(groups).amax(2).reshape(-1).to(torch.int64)
            scales = np.empty(stored.size, np.float32)
            column_kernels.find_scales(peaks.cpu().numpy(), kind, stored, scales)
            scale = torch.from_numpy(scales).to(self._device).view(*groups[:2], 1)
            weight = _floats(pattern, kind).view(groups)
            ratio = weight / scale
            values = ratio.clamp(-128, 127).round_()
            padded = torch.zeros(rounded.shape, dtype=torch.uint8, device=self._device)
            integers = values.to(torch.int8).view(torch.uint8).view(rows, width)
            padded[:, :width] = integers.bitwise_xor(int(flip))
            torch.from_numpy(rounded).copy_(padded, non_blocking=True)
            original = weight
            if is_pruned:
                original = _floats(self._upload(before), kind).view(groups)
            error = (original - values * scale).double()
            found: list[float] = torch.stack(
                [
                    (values == 0).sum().double(),
                    error.square().sum(),
                    original.double().square().sum(),
                    (ratio - values).abs().amax().double(),
                ]
            ).tolist()
        if self._stream is not None:
            self._stream.synchronize()
        return found

    def memory(self) -> DeviceMemory | None:
        """Give the peaks of the device's allocator; None where it keeps no count."""
        if not self._is_cuda:
            return None
        return DeviceMemory(
            allocated_peak_bytes=torch.cuda.max_memory_allocated(self._device),
            reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device),
        )

    def _out_of_memory(self) -> Problem:
        if self._limit_bytes is None:
            return Problem("out_of_memory", "The GPU has no memory left; others may be using it.")
        return Problem(
            "memory_budget_exceeded",
            f"The GPU's memory would pass budget.device_memory, {self._limit_bytes} bytes.",
            extra={"budget_bytes": self._limit_bytes},
        )

    def _on_stream(self) -> Any:  # noqa: ANN401 - one of two contexts
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _upload(self, bits: Bits) -> torch.Tensor:
        signed = torch.from_numpy(bits.view(_SIGNED[bits.itemsize]))
        return signed.to(self._device, non_blocking=True)


def _floats(pattern: torch.Tensor, kind: Integer) -> torch.Tensor:
    if kind == BF16:
        return pattern.view(torch.bfloat16).float()
    return pattern.view(torch.float16).float() if kind == F16 else pattern.view(torch.float32)
