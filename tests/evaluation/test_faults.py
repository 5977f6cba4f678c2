"""That memory is used up is told from all other errors, however it is said."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from evaluation.faults import blamed_on, is_out_of_memory
from jobs.problems import Problem

SAID = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory", "/models/one"),
    ImportError("libx.so: failed to map segment from shared object"),
    SafetensorError("Error while deserializing: Cannot allocate memory (os error 12)"),
]
OTHERS = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ImportError("No module named 'x'"),
    ValueError("the text says: out of memory"),
]


@pytest.mark.parametrize("error", SAID, ids=lambda error: type(error).__name__)
def test_memory_that_is_used_up_is_told_however_it_is_said(error):
    assert is_out_of_memory(error)
    with pytest.raises(MemoryError), blamed_on("evaluation_failed", "The model does not run"):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(Problem), blamed_on("evaluation_failed", "The model does not run"):
        raise error
