"""From a file that may hold anything to a graph that the rules can rely on. Nothing is executed, nothing written."""

import logging
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError

from erq_export.contract.errors import DataError

from .problem import Problem
from .shown import escaped, shown
from .tensors import read_problems
from .view import DQ, Q, View, given, named
from .wellformed import model_problems

_LARGEST = 2**31 - 1  # protobuf's own limit
_GIVE_ONNX = "give the .onnx file itself"


def load(path: Path) -> View:
    """The model, with functions inlined, constants lifted and shapes inferred as far as they can be. Weights stay on disk.

    DataError with the first thing that is malformed. What passes has unique names, no cycles, attributes of the types that
    the operators take, and complete tensors; scales, zero points and shapes can be read.
    """
    folder = path.absolute().parent
    proto = parse(path)
    try:
        _refuse_first(path, model_problems(proto, folder))
    except UnicodeDecodeError as e:  # some versions of protobuf raise where others hand out bytes
        raise _malformed(path, Problem(f"a name in it is not UTF-8: {shown(e)}")) from e
    with _quiet():
        model = _deserialized(path, proto)
        ir.external_data.set_base_dir(model.graph, folder)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        view = View(model=model)
        _refuse_first(path, _unreadable(view, folder, written_out=bool(proto.functions)))
        # a graph that inference rejects is judged without shapes: it may be what the rules are about
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return view


def parse(path: Path) -> onnx.ModelProto:
    """The protobuf message; DataError where the path is no plain file, or its bytes are none."""
    try:
        found = path.stat()
    except (OSError, ValueError) as e:
        missing = isinstance(e, FileNotFoundError | NotADirectoryError)
        reason = "" if missing else f" that can be read: {getattr(e, 'strerror', None) or e}"
        raise DataError(
            f"there is no file {escaped(path)}{reason}", fix="erq-export check FILE.onnx --target TARGET"
        ) from e
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise DataError(f"there is no file {escaped(path)}: it is {kind}", fix=_GIVE_ONNX)
    if found.st_size > _LARGEST:
        raise _no_model(path, f"it has {found.st_size} bytes, protobuf ends at 2 GiB")
    try:
        with path.open("rb") as f:
            if not _begins(f.read(16)):
                raise _no_model(path, "it does not begin like one" if found.st_size else "it is empty")
            f.seek(0)
            model = onnx.ModelProto()
            model.ParseFromString(f.read())
            return model
    except OSError as e:
        raise DataError(f"cannot read {escaped(path)}: {e.strerror}", fix="a file that you may read") from e
    except DecodeError as e:
        raise _no_model(path, f"cut off, damaged, or graphs within graphs too deep ({e})") from e


def _begins(head: bytes) -> bool:
    """Is the first field one that a model has? Tells archives, text and zeros without reading all of them."""
    tag = shift = 0
    for byte in head[:5]:
        tag |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    field = onnx.ModelProto.DESCRIPTOR.fields_by_number.get(tag >> 3)
    integer = field is not None and field.message_type is None and field.type != field.TYPE_STRING
    return field is not None and tag & 7 == (0 if integer else 2)


def _no_model(path: Path, why: str) -> DataError:
    return DataError(f"{escaped(path)} is not an ONNX model: {why}", fix=_GIVE_ONNX)


def _malformed(path: Path, problem: Problem) -> DataError:
    return DataError(f"{escaped(path)} is malformed: {problem.says}", fix=problem.fix)


def _refuse_first(path: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise _malformed(path, problem)


def _deserialized(path: Path, proto: onnx.ModelProto) -> ir.Model:
    """As onnx_ir reads it, functions in the place of their calls."""
    try:
        model = ir.serde.deserialize_model(proto)
        if model.functions:
            passes.InlinePass()(model)
    except Exception as e:  # the last resort: what is refused here should get a check of its own
        raise _malformed(path, Problem(f"onnx_ir cannot read it: {shown(e.__cause__ or e)}")) from e
    return model


def _unreadable(view: View, folder: Path, *, written_out: bool) -> Iterator[Problem]:
    """What the rules read although it may not be there: small tensors, and attributes that only the call of a function
    could give (`written_out`: there were functions)."""
    for node in view.nodes if written_out else ():
        for name in (n for n, attribute in node.attributes.items() if attribute.is_ref()):
            yield Problem(f"node {named(node)!r}: attribute {shown(name)!r} refers to one that no call gives")
    for operators, read in (((Q, DQ), (1, 2)), (("Reshape",), (1,))):
        for node in view.of_type(*operators):
            for value in (given(node, i) for i in read):
                if value is not None:
                    yield from read_problems(value, folder)


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
