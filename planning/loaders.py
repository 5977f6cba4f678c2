"""Which loaders of the ecosystem open the artifact, and what they make of it."""

from jobs.report import Loader
from planning.selection import Target

_LOAD_PY = (
    "load.py in the artifact gives a state dict of float tensors; needs torch and safetensors."
)
_VLLM_SHRUNK = Loader(
    ok=True,
    note="A smaller model of the same class; where heads were left out, its code for that class "
    "must take head_dim from the config, as it does for Llama.",
)


def loaders_of(
    targets: list[Target], output_format: str, *, has_config: bool, is_shrunk: bool = False
) -> dict[str, Loader]:
    """Say what opens the artifact.

    Args:
        targets: What the job changed.
        output_format: ``compressed-tensors`` or ``safetensors``.
        has_config: Whether the artifact is a transformers folder.
        is_shrunk: Whether its tensors are smaller than the model's.

    Returns:
        A verdict for ``transformers``, ``vllm`` and ``plain_torch``.
    """
    schemes = {target.scheme for target in targets} - {None}
    if output_format == "compressed-tensors":
        quantized = [target for target in targets if target.scheme is not None]
        return {
            "transformers": Loader(
                ok=True,
                note="from_pretrained opens it where compressed-tensors is installed; the first "
                "forward turns int8 back into floats: a smaller download, not less memory in use. "
                "generate() of an encoder-decoder starts with a part of the model, so it wants "
                "quantization_config=CompressedTensorsConfig(dequantize=True) in from_pretrained.",
            ),
            "vllm": _vllm(quantized, next(iter(schemes)) or ""),
            "plain_torch": Loader(
                ok=False, note="output.format safetensors gives a folder with a load.py."
            ),
        }
    if not schemes:
        plain = Loader(
            ok=True,
            note="A smaller model of the same class: config.json has the sizes."
            if is_shrunk
            else "Dense tensors of the same names, shapes and dtypes; zeros save no memory.",
        )
        missing = Loader(ok=False, note="There is no config.json.")
        return {
            "transformers": plain if has_config else missing,
            "vllm": _VLLM_SHRUNK if is_shrunk else plain if has_config else missing,
            "plain_torch": plain,
        }
    reason = (
        "It reads int8 from compressed-tensors only."
        if has_config
        else "There is no config.json; transformers folders become compressed-tensors."
    )
    return {
        "transformers": Loader(ok=False, note=reason),
        "vllm": Loader(ok=False, note=reason),
        "plain_torch": Loader(ok=True, note=_LOAD_PY),
    }


def _vllm(quantized: list[Target], scheme: str) -> Loader:
    if any(target.is_embedding for target in quantized):
        return Loader(
            ok=False, note="It has no int8 embeddings; leave `embeddings` out of the quantize step."
        )
    if scheme == "w8a8":
        return Loader(
            ok=True,
            note="Runs in int8 on GPUs of compute capability 7.5 to 9.x; on Blackwell (10.0 and "
            "above) it has no int8 kernels.",
        )
    odd = [t for t in quantized if t.matrix.channels % 64 or t.matrix.inputs % 128]
    if odd:
        matrix = odd[0].matrix
        return Loader(
            ok=False,
            note=f"Its Marlin kernels want outputs divisible by 64 and inputs by 128; {len(odd)} "
            f"weights are not, such as {odd[0].name} [{matrix.channels}, {matrix.inputs}].",
        )
    return Loader(ok=True, note="Weights stay int8 in memory; shapes suit the Marlin kernels.")
