"""Rounds activations where an artifact says so, by the code that compressed-tensors has for it."""

from typing import Any

import torch


def round_activations(model: torch.nn.Module, quantization: dict[str, Any] | None) -> None:
    """Have modules round what they are given, each token with a scale of its own.

    Args:
        model: Whose modules; their weights are floats, or will be when they are called.
        quantization: The member of config.json that tells how; None where nothing is rounded.
    """
    if quantization is None:
        return
    from compressed_tensors.quantization import (  # noqa: PLC0415 - few models need it
        QuantizationConfig,
        QuantizationStatus,
    )
    from compressed_tensors.quantization.lifecycle.forward import (  # noqa: PLC0415
        set_forward_quantized,
    )
    from compressed_tensors.utils.match import match_named_modules  # noqa: PLC0415

    config = QuantizationConfig.model_validate(quantization)
    for scheme in config.config_groups.values():
        if scheme.input_activations is None:
            continue
        for _, module in match_named_modules(model, scheme.targets, config.ignore):
            module.quantization_scheme = scheme
            # Weights are floats already, which is what it does to them where it opens a model.
            module.quantization_status = QuantizationStatus.DECOMPRESSED
            set_forward_quantized(module)
