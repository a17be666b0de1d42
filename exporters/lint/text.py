"""Is all text of a model UTF-8? Protobuf hands out bytes where it is not, or raises when it is asked."""

from collections.abc import Iterator

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from .problem import Problem
from .shown import shown

_MESSAGE, _STRING = FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING


def text_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    """Looks at every message once."""
    waiting: list[Message] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):  # ListFields would copy its values
            waiting += [*message.external_data, *message.metadata_props]
            yield from _not_text(message, "name", (message.name, message.doc_string))
            continue
        if isinstance(message, onnx.TypeProto.Tensor):  # by far the most frequent
            for dim in message.shape.dim:
                if type(dim.dim_param) is not str or type(dim.denotation) is not str:
                    yield from _not_text(dim, "dim_param", (dim.dim_param, dim.denotation))
            continue
        for field, value in message.ListFields():
            if type(value) is str:
                continue
            if field.type == _MESSAGE:
                waiting += (value,) if isinstance(value, Message) else value
            elif field.type == _STRING:
                yield from _not_text(message, field.name, (value,) if isinstance(value, bytes) else value)


def _not_text(message: Message, field: str, values: tuple[object, ...]) -> Iterator[Problem]:
    for value in values:
        if not isinstance(value, str):
            yield Problem(f"{message.DESCRIPTOR.name}.{field} is {shown(value)}, which is not UTF-8")
