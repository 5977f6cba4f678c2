"""What an exported program may say: operators, names and symbolic expressions, each by a grammar.

torch resolves an operator's name by a chain of getattr, evaluates expressions with sympy, which is
Python's eval, and writes names into source code that it runs. So nothing else gets that far.
"""

import ast
import keyword
import re

from jobs.problems import Problem

_MOST_EXPRESSION = 4000
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_FQN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
#: torch counts up to the number of a symbol, so it has an end.
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,5}")
_ENTRY = re.compile(r"(weight|tensor)_[0-9]{1,6}")
_TEXT = re.compile(r"[A-Za-z0-9_,.> -]{0,200}")

#: Operators of aten that models are made of, without their overloads and in-place forms. None of
#: them opens a file, reads a pointer or draws on anything but its inputs.
_ATEN = frozenset(
    """
    _adaptive_avg_pool2d _assert_scalar _assert_tensor_metadata _int_mm _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _scaled_dot_product_attention_math
    _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_view abs acos
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d add addcdiv addcmul addmm alias all alpha_dropout amax amin any arange
    argmax argmin argsort as_strided asin atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to bucketize cat ceil
    celu channel_shuffle chunk clamp clamp_max clamp_min clone complex concat concatenate
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution copy cos cosh cumprod cumsum deg2rad detach diag diagonal div
    dot dropout einsum elu embedding empty empty_like eq erf erfc exp exp2 expand expand_as expm1
    eye fill flatten flip floor floor_divide fmod frac full full_like gather ge gelu glu
    grid_sampler grid_sampler_2d group_norm gru gt hardshrink hardsigmoid hardswish hardtanh
    index index_add index_copy index_put index_select instance_norm isfinite isinf isnan item
    layer_norm le leaky_relu lerp lift_fresh lift_fresh_copy linalg_vector_norm linear linspace log
    log10 log1p log2 log_sigmoid log_softmax logical_and logical_not logical_or logical_xor
    logsumexp lstm lt masked_fill masked_scatter matmul max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d maximum mean meshgrid min minimum mish mm movedim mul mv
    narrow native_batch_norm native_dropout native_group_norm native_layer_norm ne neg new_empty
    new_full new_ones new_zeros norm numpy_T one_hot ones ones_like outer pad permute
    pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad1d
    reflection_pad2d relu relu6 remainder repeat repeat_interleave replication_pad1d
    replication_pad2d reshape rms_norm roll round rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter scatter_add select select_scatter selu sigmoid sign silu
    sin sinh size slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt
    square squeeze stack std sub sum sym_constrain_range sym_constrain_range_for_size sym_numel
    sym_size sym_storage_offset sym_stride t tan tanh tensor_split threshold tile to topk
    transpose tril triu true_divide trunc type_as unbind unfold unsafe_chunk unsafe_split
    unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d var
    var_mean view view_as where zeros zeros_like
    """.split()  # noqa: SIM905 - a list reads worse
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+?)_?\.([A-Za-z0-9_]+)")
#: What counts and compares sizes.
_PLAIN = frozenset(
    """
    _operator.add _operator.sub _operator.mul _operator.floordiv _operator.mod _operator.neg
    _operator.pos _operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt
    _operator.and_ _operator.or_ _operator.pow _operator.truediv _operator.getitem
    torch.sym_int torch.sym_float torch.sym_max torch.sym_min torch.sym_not torch.sym_ite
    """.split()  # noqa: SIM905 - a list reads worse
)

#: What sympy's srepr writes of sizes and of conditions on them.
_FUNCTIONS = frozenset(
    """
    Symbol Integer Add Mul Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv
    FloorToInt CeilToInt TruncToInt RoundToInt ToFloat Equality Unequality Eq Ne Ge Gt Le Lt
    GreaterThan LessThan StrictGreaterThan StrictLessThan And Or Not
    """.split()  # noqa: SIM905 - a list reads worse
)
_ASSUMPTIONS = frozenset({"positive", "integer", "nonnegative", "nonzero", "real", "zero"})


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
    if target in _PLAIN or (found is not None and found[1] in _ATEN):
        return target
    raise Problem(
        "unsupported_operator",
        f"The graph calls {target[:120]!a}. Accepted are aten operators that models are made of; "
        "neither those that read files, nor others' operators, nor control flow.",
        extra={"operator": target[:120]},
    )


def check_identifier(name: str, what: str) -> str:
    """Give a name that torch writes into source code.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    if _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name):
        return name
    raise Problem("invalid_program", f"{what}: {name[:80]!a} is no identifier.")


def check_fqn(name: str, what: str) -> str:
    """Give the dotted name of a parameter, buffer or constant.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    if len(name) <= 500 and _FQN.fullmatch(name):
        return name
    raise Problem("invalid_program", f"{what}: {name[:80]!a} is no dotted name.")


def check_entry(name: str, what: str) -> str:
    """Give the name of a tensor's bytes in the archive.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`, or `unsafe_program` where it is that of an object.
    """
    if _ENTRY.fullmatch(name):
        return name
    if name.startswith(("custom_obj_", "opaque_obj_")):
        raise Problem("unsafe_program", f"{what}: {name[:80]!a} is an object, and no tensor.")
    raise Problem("invalid_program", f"{what}: {name[:80]!a} is no entry for a tensor.")


def check_text(text: str, what: str) -> str:
    """Give a word that operators take, such as ``same`` or an equation of einsum.

    Args:
        text: The word.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    if _TEXT.fullmatch(text):
        return text
    raise Problem("invalid_program", f"{what}: {text[:80]!a} is no word that an operator takes.")


def check_symbol(name: str, what: str) -> str:
    """Give the name of a symbolic size.

    Args:
        name: The name, such as ``s40``.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_expression`.
    """
    if _SYMBOL.fullmatch(name):
        return name
    raise Problem("invalid_expression", f"{what}: {name[:80]!a} is no symbol such as s0.")


def check_expression(text: str, what: str) -> str:
    """Give a symbolic expression, such as ``Mul(Integer(2), Symbol('s0', integer=True))``.

    Args:
        text: As sympy's srepr writes it.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_expression`.
    """
    if len(text) > _MOST_EXPRESSION:
        fault: object = f"it is longer than {_MOST_EXPRESSION} characters"
    else:
        try:
            _check_node(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            fault = error
        else:
            return text
    raise Problem(
        "invalid_expression",
        f"{what}: the expression {text[:120]!a} is not accepted: {str(fault)[:120]}.",
    )


def _check_node(node: ast.expr) -> None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("it is no call of a function of sympy")  # noqa: TRY004 - of the text
    name = node.func.id
    if name not in _FUNCTIONS:
        raise ValueError(f"it calls {name!a}")
    if name == "Symbol":
        _check_symbol_node(node)
        return
    if node.keywords:
        raise ValueError(f"{name} takes no keywords")
    if name == "Integer":
        [number] = node.args
        value = ast.literal_eval(number)
        if type(value) is not int or abs(value) >= 2**63:
            raise ValueError("an Integer is none")
        return
    for argument in node.args:
        _check_node(argument)


def _check_symbol_node(node: ast.Call) -> None:
    [symbol] = node.args
    if not isinstance(symbol, ast.Constant) or not _SYMBOL.fullmatch(str(symbol.value)):
        raise ValueError("a Symbol has no name such as s0")
    for word in node.keywords:
        is_flag = isinstance(word.value, ast.Constant) and type(word.value.value) is bool
        if word.arg not in _ASSUMPTIONS or not is_flag:
            raise ValueError("a Symbol has more than assumptions")
