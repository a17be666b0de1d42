"""Does a tensor hold what it says: a known type, a size that exists, and as many values, here or in a file beside the model?"""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from .problem import Problem
from .shown import shown

_MOST_DIMENSIONS = 64  # as NumPy
MOST_VALUES = 2**24  # of a scale, zero point or shape: they are read
_T = onnx.TensorProto
DATA_TYPES = frozenset(_T.DataType.values())
_FIELDS: dict[int, str] = {
    **dict.fromkeys((_T.FLOAT, _T.COMPLEX64), "float_data"),
    **dict.fromkeys((_T.DOUBLE, _T.COMPLEX128), "double_data"),
    **dict.fromkeys((_T.UINT32, _T.UINT64), "uint64_data"),
    _T.INT64: "int64_data",
    _T.STRING: "string_data",
}  # every other type is held in int32_data
_ALL_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_WHOLE_FILE = "keep it beside the model, as it was exported"


def tensor_problems(tensor: onnx.TensorProto, folder: Path) -> Iterator[Problem]:
    """`folder` is the model's own. A data file that is missing is no problem: weights are not read."""
    kind, rank = tensor.data_type, len(tensor.dims)
    where = f"tensor {shown(tensor.name)!r}"
    if kind not in DATA_TYPES or kind == _T.UNDEFINED:
        yield Problem(f"{where}: {kind} is no data type")
        return
    if rank > _MOST_DIMENSIONS:
        yield Problem(f"{where} has {rank} dimensions, at most {_MOST_DIMENSIONS} are read")
        return
    dims = list(tensor.dims)
    size = math.prod(dims)
    if dims and min(dims) < 0:
        yield Problem(f"{where} has the dimensions {dims}: none may be negative")
        return
    if size >= 2**63:
        yield Problem(f"{where} has the dimensions {dims}: no machine holds that")
        return
    if tensor.HasField("segment"):
        yield Problem(f"{where} is stored in segments, which is not read")
    held = [name for name in _ALL_FIELDS if len(getattr(tensor, name))]
    if tensor.data_location == _T.EXTERNAL:
        yield from _external_problems(tensor, folder, where, size)
    elif tensor.HasField("raw_data") and held:
        yield Problem(f"{where} holds its values twice: raw_data and {held[0]}")
    elif tensor.HasField("raw_data"):
        if tensor.data_type == _T.STRING:
            yield Problem(f"{where}: strings cannot be raw_data")
        elif len(tensor.raw_data) != (needed := nbytes(tensor.data_type, size)):
            yield Problem(f"{where} of dimensions {dims} needs {needed} bytes and holds {len(tensor.raw_data)}")
    else:
        yield from _typed_problems(tensor, where, held, size)


def nbytes(data_type: int, size: int) -> int:
    return -(-size * ir.DataType(data_type).bitwidth // 8)


def _typed_problems(tensor: onnx.TensorProto, where: str, held: list[str], size: int) -> Iterator[Problem]:
    field = _FIELDS.get(tensor.data_type, "int32_data")
    if held and held != [field]:
        yield Problem(f"{where} of type {_T.DataType.Name(tensor.data_type)} holds values in {held[0]}, not in {field}")
        return
    needed = size
    if tensor.data_type in (_T.COMPLEX64, _T.COMPLEX128):
        needed = 2 * size
    elif tensor.data_type != _T.STRING and ir.DataType(tensor.data_type).bitwidth < 8:
        needed = nbytes(tensor.data_type, size)
    values = getattr(tensor, field)
    if len(values) != needed:
        yield Problem(f"{where} of dimensions {shown([*tensor.dims])} needs {needed} values and holds {len(values)}")
    elif field == "int32_data" and needed and not _fits(tensor.data_type, min(values), max(values)):
        yield Problem(f"{where}: its values do not fit {_T.DataType.Name(tensor.data_type)}")


def _fits(data_type: int, least: int, most: int) -> bool:
    bits = max(8, ir.DataType(data_type).bitwidth)
    signed = data_type in (_T.INT8, _T.INT16, _T.INT32, _T.INT4, _T.INT2)
    packed = ir.DataType(data_type).bitwidth < 8
    low = -(2 ** (bits - 1)) if signed else 0
    return low <= least and most < 2 ** (bits - 1 if signed and not packed else bits)


def _external_problems(tensor: onnx.TensorProto, folder: Path, where: str, size: int) -> Iterator[Problem]:
    """Names and numbers always, the file where there is one."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    if not location or "\0" in location:
        yield Problem(f"{where}: its external data names no file")
        return
    pure = (PurePosixPath(location), PureWindowsPath(location))
    if any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in pure):
        yield Problem(f"{where}: its data lie outside the model's folder, in {shown(location)!r}", _WHOLE_FILE)
        return
    numbers = {}
    for name in ("offset", "length"):
        text = said.get(name, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            yield Problem(f"{where}: the {name} of its external data is {shown(text)!r}, no count of bytes")
            return
        numbers[name] = int(text)
    if tensor.data_type == _T.STRING:
        yield Problem(f"{where}: strings cannot lie in another file")
        return
    needed = nbytes(tensor.data_type, size)
    if "length" in said and numbers["length"] != needed:
        yield Problem(f"{where} needs {needed} bytes, its external data are {numbers['length']}")
    try:
        found = (folder / location).stat()
    except FileNotFoundError:
        return
    except OSError as e:
        yield Problem(f"{where}: its data file {shown(location)!r} cannot be read: {e.strerror}", _WHOLE_FILE)
        return
    if not stat.S_ISREG(found.st_mode):
        yield Problem(f"{where}: its data file {shown(location)!r} is no plain file", _WHOLE_FILE)
    elif needed and found.st_size < numbers["offset"] + needed:
        end = numbers["offset"] + needed
        yield Problem(f"{where}: {shown(location)!r} ends at byte {found.st_size}, its data at {end}", _WHOLE_FILE)


def read_problems(value: ir.Value, folder: Path) -> Iterator[Problem]:
    """Can the rules read this scale, zero point or shape? More is asked of it than of weights."""
    tensor = value.const_value
    if tensor is None:
        return
    where = f"tensor {shown(value.name)!r}"
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.name.startswith("COMPLEX"):
        yield Problem(f"{where} is {tensor.dtype.name}; a scale, zero point or shape is a number")
        return
    if tensor.size > MOST_VALUES:
        yield Problem(f"{where} has {tensor.size} values; a scale, zero point or shape has {MOST_VALUES} at most")
        return
    if not isinstance(tensor, ir.ExternalTensor) or not tensor.size:
        return
    path = folder / tensor.location
    if not path.exists():
        yield Problem(f"{where} lies in {shown(tensor.location)!r}, which is missing", _WHOLE_FILE)
    elif not path.resolve().is_relative_to(folder.resolve()):
        yield Problem(f"{where} lies in {shown(tensor.location)!r}, a link out of the model's folder", _WHOLE_FILE)
    elif path.stat().st_nlink > 1:  # onnx_ir refuses these: such a link may show a file from anywhere
        yield Problem(f"{where} lies in {shown(tensor.location)!r}, which has other hard links", "copy the file")
    elif not os.access(path, os.R_OK):
        yield Problem(f"{where} lies in {shown(tensor.location)!r}, which may not be read", _WHOLE_FILE)
