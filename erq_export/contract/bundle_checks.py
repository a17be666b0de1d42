"""Is what a bundle's files say possible? A bundle may come from anyone, and its hash only says that both files fit together.

Letters:  k inputs, n outputs of a layer;  m outlier columns
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erq_export.contract.bits import ACTIVATION_BITS, WEIGHT_BITS
from erq_export.contract.errors import DataError
from erq_export.contract.formats.affine import AffineRow, FreeRow
from erq_export.contract.formats.logarithmic import LogRow
from erq_export.contract.rows import ConvRow, LayerRow, OperandRow
from erq_export.contract.simulated import SimulatedLayerRow, SimulatedOperandRow
from erq_export.contract.spec import Quantization

FIX = "calibrate again, or take the bundle from where it was made"
LARGEST_CODE = 2**24  # of grids that are simulated in float32, which holds no larger integers
LARGEST_WINDOW = 64  # pixels of a convolution's side and step; a patch embedding has 32 at most
FLOATS = (torch.float32,)
OTHERS = (torch.float32, torch.int64, torch.bool)  # of what stays float: weights, and a Swin's indices and masks


def check(
    spec: Quantization,
    layers: Sequence[LayerRow | SimulatedLayerRow],
    operands: Sequence[OperandRow | SimulatedOperandRow],
    tensors: Mapping[str, Tensor],
) -> None:
    """DataError naming the first tensor or row that no calibration leaves: another shape or type, a scale that is not above
    0, a value that is not finite, codes outside their grid, bits out of range, a row that stands twice, one tensor too many.

    KeyError for a tensor that is missing.
    """
    twice = [path for path, n in Counter(row.path for row in (*layers, *operands)).items() if n > 1]
    if twice:
        raise _refused(f"{twice[0]} stands in it twice")
    known: set[str] = set()
    for row in layers:
        known |= _layer(row, tensors, deployed=spec.rules.holds_zero)
    for operand in operands:
        known |= _operand(operand, tensors, deployed=spec.rules.holds_zero)
    for name, tensor in tensors.items():
        if name.startswith("float."):
            _tensor(name, tensor, tuple(tensor.shape), OTHERS)
        elif name not in known:
            raise _refused(f"the tensor {name[:200]!r} belongs to nothing that it names")


def _layer(row: LayerRow | SimulatedLayerRow, tensors: Mapping[str, Tensor], *, deployed: bool) -> set[str]:
    """Names of the layer's tensors, checked."""
    base = f"layer.{row.path}."
    simulated = isinstance(row, SimulatedLayerRow)
    _kind(row.path, simulated=simulated, deployed=deployed)
    _bits(row.path, "w_bits", row.w_bits, WEIGHT_BITS)
    _bits(row.path, "a_bits", row.a_bits, FLOAT_BITS if row.act is None else ACTIVATION_BITS)
    q, starts = (torch.int32, torch.int32) if simulated else (torch.int8, torch.int16)
    weight_q = tensors[f"{base}weight_q"]
    if isinstance(row, ConvRow):
        _kernel(row, weight_q)
    if weight_q.ndim != 2 or not weight_q.numel():
        raise _refused(f"{base}weight_q has the shape {tuple(weight_q.shape)}, not (outputs, inputs)")
    n, k = weight_q.shape
    _tensor(f"{base}weight_q", weight_q, (n, k), (q,))
    _tensor(f"{base}weight_scale", tensors[f"{base}weight_scale"], (n,), FLOATS, positive=True)
    _tensor(f"{base}weight_qmin", tensors[f"{base}weight_qmin"], (n,), (starts,))
    _tensor(f"{base}bias", tensors[f"{base}bias"], (n,), FLOATS)
    names = {"weight_q", "weight_scale", "weight_qmin", "bias"}
    first = tensors[f"{base}weight_qmin"].long()[:, None].expand(n, k)  # (n, k)
    if row.act is not None:
        _grid(row.path, row.act, row.a_bits)
        _tensor(f"{base}act_scale", tensors[f"{base}act_scale"], (), FLOATS, positive=True)
        names.add("act_scale")
    if isinstance(row, SimulatedLayerRow) and row.outliers:
        names |= {"outlier_columns", "outlier_scale", "outlier_qmin"}
        first = _outliers(base, tensors, first)
    outside = (weight_q.long() < first) | (weight_q.long() > first + 2**row.w_bits - 1)
    if bool(outside.any()):
        raise _refused(f"{base}weight_q has codes outside the grid of {row.w_bits} bits that begins at weight_qmin")
    return {base + name for name in names}


def _kernel(row: ConvRow, weight_q: Tensor) -> None:
    """A convolution's window, step and border, as far as a machine can bear them, and a weight of as many columns."""
    window, stride, padding = row.kernel.window, row.kernel.stride, row.kernel.padding
    sane = row.kernel.channels > 0 and all(0 < n <= LARGEST_WINDOW for n in (*window, *stride))
    if not sane or not all(0 <= n < r for n, r in zip(padding, window, strict=True)):
        raise _refused(f"{row.path} has a window of {window}, steps of {stride} and a border of {padding}")
    if weight_q.ndim == 2 and weight_q.shape[1] != row.kernel.columns:
        raise _refused(f"{row.path} has {row.kernel.columns} columns, its weight {weight_q.shape[1]}")


def _outliers(base: str, tensors: Mapping[str, Tensor], first: Tensor) -> Tensor:
    """Where every entry's grid begins (n, k), the outlier columns' own among them."""
    n, k = first.shape
    columns = tensors[f"{base}outlier_columns"]
    _tensor(f"{base}outlier_columns", columns, (columns.numel(),), (torch.int64,))
    if len(columns.unique()) < len(columns) or not bool(((columns >= 0) & (columns < k)).all()):
        raise _refused(f"{base}outlier_columns are no columns of a weight with {k}")
    _tensor(f"{base}outlier_scale", tensors[f"{base}outlier_scale"], (n,), FLOATS, positive=True)
    _tensor(f"{base}outlier_qmin", tensors[f"{base}outlier_qmin"], (n,), (torch.int32,))
    first = first.clone()
    first[:, columns] = tensors[f"{base}outlier_qmin"].long()[:, None]
    return first


def _operand(row: OperandRow | SimulatedOperandRow, tensors: Mapping[str, Tensor], *, deployed: bool) -> set[str]:
    """Names of the operand's tensors, checked."""
    name = f"operand.{row.path}.scale"
    _kind(row.path, simulated=isinstance(row, SimulatedOperandRow), deployed=deployed)
    _bits(row.path, "bits", row.bits, ACTIVATION_BITS)
    _grid(row.path, row.grid, row.bits)
    _tensor(name, tensors[name], (), FLOATS, positive=True)
    return {name}


def _kind(path: str, *, simulated: bool, deployed: bool) -> None:
    if simulated == deployed:
        kinds = ("deployed", "simulated") if simulated else ("simulated", "deployed")
        raise _refused(f"{path} is {kinds[1]} in a bundle whose rules are those of {kinds[0]} ones")


FLOAT_BITS = range(32, 33)  # of an input that is not quantized
ROUNDING = 1e-3  # of a bound that is no integer: float32 keeps the width of a grid only as far as its ends are small


def _bits(path: str, name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise _refused(f"{path} has {name} {_number(value)}, not {allowed[0]} to {allowed[-1]}")


def _grid(path: str, row: AffineRow | FreeRow | LogRow, bits: int) -> None:
    """The range is finite, in order, at most as wide as its bits; where integers carry it, it holds 0."""
    if isinstance(row, LogRow):
        if row.bits != bits:
            raise _refused(f"{path} has a logarithmic grid of {_number(row.bits)} bits, its bits are {bits}")
        return
    low, high = row.qmin, row.qmax
    holds_zero = isinstance(row, FreeRow) or low <= 0 <= high
    inside = abs(low) <= LARGEST_CODE and abs(high) <= LARGEST_CODE  # false for NaN, too
    rounding = ROUNDING if isinstance(row, FreeRow) else 0
    if not (inside and holds_zero and low <= high <= low + 2**bits - 1 + rounding):
        rule = "in order" if isinstance(row, FreeRow) else "around 0"
        raise _refused(f"{path} has codes from {_number(low)} to {_number(high)}, not {rule} and of {bits} bits")


def _tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], kinds: tuple[torch.dtype, ...], *, positive: bool = False
) -> None:
    if tensor.dtype not in kinds:
        wanted = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
        raise _refused(f"{name[:200]} is {str(tensor.dtype).removeprefix('torch.')}, not {wanted}")
    if tuple(tensor.shape) != shape:
        raise _refused(f"{name[:200]} has the shape {tuple(tensor.shape)}, not {shape}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise _refused(f"{name[:200]} holds NaN or infinity")
    if positive and not bool((tensor > 0).all()):
        raise _refused(f"{name[:200]} holds a scale that is not above 0")


def _number(value: float) -> str:
    return f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 2**63 else f"{value:g}"


def _refused(problem: str) -> DataError:
    return DataError(f"the bundle cannot be: {problem}", fix=FIX)
