"""The operators that an exported program may call.

torch finds an operator by a chain of getattr from its name, so the names are listed.
"""

import re

from jobs.problems import Problem

#: Operators of aten that models are made of, without their overloads and in-place forms. None of
#: them opens a file, reads a pointer or draws on anything but its inputs.
_ATEN = frozenset(
    """
    __and__ __or__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_scalar
    _assert_tensor_metadata _cdist_forward _embedding_bag _fft_c2c _fft_c2r _fft_r2c
    _fused_rms_norm _int_mm _local_scalar_dense _log_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _safe_softmax _scaled_dot_product_attention_math
    _scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention_for_cpu _softmax
    _to_copy _unsafe_index _unsafe_masked_index _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _weight_norm _weight_norm_interface abs acos acosh
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d add addbmm addcdiv addcmul addmm addmv alias all alpha_dropout amax amin
    any arange argmax argmin argsort as_strided asin asinh atan atan2 atanh avg_pool1d
    avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
    broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min
    clone col2im complex concat concatenate constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution copy cos cosh
    cosine_similarity cross_entropy_loss cumprod cumsum deg2rad detach diag diagonal diff div
    dot dropout einsum elu embedding embedding_bag empty empty_like empty_strided eq erf erfc
    exp exp2 expand expand_as expm1 eye feature_dropout fill flatten flip floor floor_divide
    fmod frac full full_like gather ge gelu glu grid_sampler grid_sampler_2d group_norm gru gt
    hardshrink hardsigmoid hardswish hardtanh hstack im2col index index_add index_copy index_put
    index_select instance_norm isclose isfinite isinf isnan item l1_loss layer_norm le
    leaky_relu lerp lift_fresh lift_fresh_copy linalg_norm linalg_vector_norm linear linspace
    log log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and logical_not logical_or
    logical_xor logit logsumexp lstm lt masked_fill masked_scatter matmul max max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean meshgrid
    min minimum mish mm moveaxis movedim mse_loss mul mv nan_to_num narrow native_batch_norm
    native_channel_shuffle native_dropout native_group_norm native_layer_norm ne neg new_empty
    new_full new_ones new_zeros nll_loss nll_loss2d_forward nll_loss_forward nonzero norm
    numpy_T one_hot ones ones_like outer pad pairwise_distance permute pixel_shuffle
    pixel_unshuffle polar pow prelu prod reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder repeat repeat_interleave replication_pad1d
    replication_pad2d replication_pad3d reshape rms_norm rnn_relu rnn_tanh roll rot90 round
    rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce
    searchsorted select select_scatter selu sgn sigmoid sign silu sin sinc sinh size slice
    slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square squeeze
    stack std std_mean sub sum swapaxes swapdims sym_constrain_range
    sym_constrain_range_for_size sym_numel sym_size sym_storage_offset sym_stride t
    take_along_dim tan tanh tensor_split threshold tile to topk transpose tril tril_indices triu
    triu_indices true_divide trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as
    view_as_complex view_as_real vstack where zeros zeros_like
    """.split()  # noqa: SIM905 - a list reads worse
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.[A-Za-z0-9_]+")
#: What counts and compares sizes.
_PLAIN = frozenset(
    """
    _operator.add _operator.sub _operator.mul _operator.floordiv _operator.mod _operator.neg
    _operator.pos _operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt
    _operator.and_ _operator.or_ _operator.pow _operator.truediv _operator.getitem
    torch.sym_int torch.sym_float torch.sym_max torch.sym_min torch.sym_not torch.sym_ite
    """.split()  # noqa: SIM905 - a list reads worse
)


def check_operator(target: str) -> str:
    """Give an operator's name, where it is one that programs may call.

    Args:
        target: As the graph names it.

    Returns:
        The same.

    Raises:
        Problem: `unsupported_operator`.
    """
    found = _OPERATOR.fullmatch(target)
    name = found[1] if found else ""
    if target in _PLAIN or name in _ATEN or name.removesuffix("_") in _ATEN:
        return target
    raise Problem(
        "unsupported_operator",
        f"The graph calls {target[:120]!a}. Accepted are aten operators that models are made of; "
        "neither those that read files, nor others' operators, nor control flow.",
        extra={"operator": target[:120]},
    )
