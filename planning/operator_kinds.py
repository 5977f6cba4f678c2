"""Kinds of operators, by what they do to the dimensions of what they are given."""

#: Each place of the output comes from the same place of the input.
SAME = frozenset(
    """
    abs alias celu clamp clamp_max clamp_min clone contiguous copy detach dropout elu erf exp gelu
    hardshrink hardsigmoid hardswish hardtanh leaky_relu lift_fresh lift_fresh_copy log log1p mish
    neg reciprocal relu relu6 round rsqrt selu sigmoid sign silu sin cos softplus softshrink sqrt
    square tan tanh threshold to _to_copy
    """.split()  # noqa: SIM905 - a list of hundred lines reads worse
)
#: The same, from several inputs.
BROADCAST = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "rsub", "pow"})
#: Each channel comes from the same channel, and places from places.
POOLS = frozenset(
    """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
    upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
    """.split()  # noqa: SIM905 - a list of hundred lines reads worse
)
#: Convolutions, with how many dimensions places have; 0 where the weight tells.
CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "convolution": 0}
#: BatchNorms, as they are once trained.
NORMS = frozenset({"batch_norm", "_native_batch_norm_legit_no_training"})
#: Some dimensions are summed up.
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "logsumexp"})
#: The same values in the same order, in another shape.
SHAPED = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as"})
