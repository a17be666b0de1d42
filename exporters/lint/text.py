"""Is all text of a model UTF-8? Protobuf hands out bytes where it is not, or raises when it is asked."""

from collections.abc import Iterator

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from .problem import Problem
from .shown import shown

_TENSOR_TEXT = ("name", "doc_string")  # ListFields would copy a tensor's values


def text_problems(model: onnx.ModelProto) -> Iterator[Problem]:
    """Looks at every message once."""
    waiting: list[Message] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TypeProto.Tensor):  # the most frequent one, looked through without a list of fields
            dims = message.shape.dim
            texts = [
                (name, text) for d in dims for name, text in (("dim_param", d.dim_param), ("denotation", d.denotation))
            ]
        elif isinstance(message, onnx.TensorProto):
            waiting.extend(message.external_data)
            waiting.extend(message.metadata_props)
            texts = [(name, getattr(message, name)) for name in _TENSOR_TEXT]
        else:
            texts = []
            for field, value in message.ListFields():
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    waiting.extend((value,) if isinstance(value, Message) else value)
                elif field.type == FieldDescriptor.TYPE_STRING:
                    texts.extend((field.name, each) for each in ((value,) if isinstance(value, str | bytes) else value))
        for name, text in texts:
            if not isinstance(text, str):
                yield Problem(f"{message.DESCRIPTOR.name}.{name} is {shown(text)}, which is not UTF-8")
