"""Random damage to an ONNX file: fields of its protobuf dropped, doubled, exchanged or given odd values, and flipped bytes."""

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 16, 21, 23, 100, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 1e-45, 3e38, math.inf, -math.inf, math.nan)
_STRINGS = (
    "",
    "x",
    "/",
    "..",
    "\0",
    "\n",
    "ü",
    "x" * 300,
    "Constant",
    "If",
    "Softmax",
    "DequantizeLinear",
    "Reshape",
    "ai.onnx",
)
_BYTES = (b"", b"\0", b"\xff" * 7, b"\x80\x81")
_TEXT, _BINARY, _MESSAGE = FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE
_REAL = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
_NARROW = {FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.TYPE_UINT64: (0, 2**63 - 1)}


def mutated(model: onnx.ModelProto, random: Random) -> bytes:
    """The file's bytes after one to four changes of fields, or after a flip, a cut or a repetition of bytes."""
    if random.random() < 0.25:
        return _bytes(bytearray(model.SerializeToString()), random)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(random.choice((1, 1, 2, 4))):
        _change(copy, random)
    return copy.SerializeToString()


def _bytes(data: bytearray, random: Random) -> bytes:
    kind = random.choice(("flip", "flip", "flip", "cut", "repeat"))
    if kind == "cut":
        return bytes(data[: random.randrange(len(data))])
    if kind == "repeat":
        at = random.randrange(len(data))
        return bytes(data[:at] + data[at // 2 : at] + data[at:])
    for _ in range(random.choice((1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == _MESSAGE:
            for child in (value,) if isinstance(value, Message) else value:
                yield from _messages(child)


def _change(model: onnx.ModelProto, random: Random) -> None:
    messages = list(_messages(model))
    message = random.choice(messages)
    fields = message.DESCRIPTOR.fields if random.random() < 0.3 else [f for f, _ in message.ListFields()]
    if not fields:
        return
    field = random.choice(list(fields))
    if hasattr(value := getattr(message, field.name), "append"):
        _change_list(value, field, messages, random)
    elif random.random() < 0.25:
        message.ClearField(field.name)
    elif field.type == _MESSAGE:
        getattr(message, field.name).CopyFrom(_like(field, messages, random))
    else:
        setattr(message, field.name, _odd(field, messages, random))


def _change_list(values: Any, field: FieldDescriptor, messages: list[Message], random: Random) -> None:
    new = _like(field, messages, random) if field.type == _MESSAGE else _odd(field, messages, random)
    at = random.randrange(len(values)) if len(values) else None
    kind = random.choice(("drop", "double", "new", "replace"))
    if at is None or kind == "new":
        values.append(new)
    elif kind == "drop":
        del values[at]
    elif kind == "double":
        values.append(values[at])
    elif field.type == _MESSAGE:
        values[at].CopyFrom(new)
    else:
        values[at] = new


def _like(field: FieldDescriptor, messages: list[Message], random: Random) -> Message:
    """Another message of the field's type from the same file, or an empty one."""
    found = [m for m in messages if m.DESCRIPTOR.full_name == field.message_type.full_name]
    made: Message = GetMessageClass(field.message_type)()
    if found and random.random() < 0.8:
        made.CopyFrom(random.choice(found))
    return made


def _odd(field: FieldDescriptor, messages: list[Message], random: Random) -> Any:
    if field.type in _REAL:
        return random.choice(_FLOATS)
    if field.type == _BINARY:
        return random.choice(_BYTES)
    if field.type == _TEXT:
        return random.choice(_STRINGS) if random.random() < 0.3 else _name(messages, random)
    if field.enum_type is not None:
        return random.choice([*(v.number for v in field.enum_type.values)])
    low, high = _NARROW.get(field.type, (-(2**63), 2**63 - 1))
    return min(max(random.choice(_INTEGERS), low), high)


def _name(messages: list[Message], random: Random) -> str:
    """A name that the file uses somewhere: of an operator, a value, an attribute."""
    node = random.choice([m for m in messages if isinstance(m, onnx.NodeProto)] or [onnx.NodeProto()])
    names = [node.op_type, node.name, *node.input, *node.output, *(a.name for a in node.attribute)]
    return random.choice(names)
