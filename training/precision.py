"""Whether a device computes in bfloat16 by itself."""

import torch

#: What processors that multiply such values themselves call it.
_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


def has_bf16(device: str) -> bool:
    """Tell whether a device has instructions for bfloat16.

    Args:
        device: `cpu` or `cuda`.

    Returns:
        False also where it could only be emulated, which is slower than float32.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _CAPABILITIES)
