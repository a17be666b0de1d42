"""Typed records and their one codec: whatever is written to a file or read from one is a record.

A constraint stands beside the field that it constrains, as `Annotated[float, Meta(gt=0, description=…)]`. The command line,
the Python API, what is accepted from a file and the JSON schemas in `docs/schemas` all come from that declaration.
Records from elsewhere are untrusted: an unknown field, another type at any depth, or another version is a DataError that
names file, path inside it, value and rule.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from erq_export.contract.errors import DataError, ErqError, SpecError
from erq_export.contract.registry import unknown

LARGEST_FILE = 2**28  # bytes of a record: 256 MiB; the report of the largest model has some 100 KiB
SHOWN = 60  # characters of a refused value that an error repeats

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
ModulePath = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*$")]
Scalar = bool | int | float | str | None
R = TypeVar("R", bound="Record")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, keyword-only, compared by value."""


class FileRecord(Record, frozen=True, kw_only=True):
    """A record that is a file of its own, with the version of its form: a reader of another version refuses it."""

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "record"  # as errors call it
    REMEDY: ClassVar[str] = "run erq-export MODEL --out DIR again"


class Spec(Record, frozen=True, kw_only=True):
    """A record that people fill in: checked when it is made, not only when it is read.

    SpecError for a value that breaks its field's rule, naming the field, the value, the rule and what to type instead.
    """

    def __post_init__(self) -> None:
        for name, kind in hints(type(self)).items():
            value = getattr(self, name)
            checked = checked_value(value, kind, word=self.word(name))
            if checked is not value:
                msgspec.structs.force_setattr(self, name, checked)

    @classmethod
    def word(cls, name: str) -> str:
        """The field as a user types it."""
        return f"--{name.replace('_', '-')}"


@cache
def hints(kind: type[Record]) -> dict[str, Any]:
    """Every field's annotation, constraints included, in the order of declaration."""
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in kind.__struct_fields__}


def meta(annotation: Any) -> Meta:
    """The first Meta beside a type, or an empty one."""
    return next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Meta)), Meta())


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a field, or an item of its list, can be: a Literal's, or the `enum` beside it; empty where any will do."""
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    if words := (meta(annotation).extra_json_schema or {}).get("enum"):
        return tuple(words)
    return tuple(word for part in get_args(annotation) if not isinstance(part, Meta) for word in choices(part))


def checked_value(value: Any, kind: Any, *, word: str, text: bool = False) -> Any:
    """`value` as the annotation `kind` has it; SpecError where it breaks the rule.

    word: the field as a user types it.  text: the value was typed, so "1e4" is a number and "true" a truth.
    """
    if known := choices(kind):
        for item in (value,) if isinstance(value, str) else value if isinstance(value, (tuple, list)) else ():
            if isinstance(item, str) and item not in known:
                raise unknown(word, item, known)
    try:
        return msgspec.convert(value, kind, strict=not text, dec_hook=decode_custom)
    except msgspec.ValidationError as e:
        rule, _ = rule_and_path(e)
        raise SpecError(
            f"{word} {shown(value)}: {rule}", fix=remedy(kind) or f"a value of {word} that keeps the rule"
        ) from e


def remedy(kind: Any) -> str:
    """What to type instead, where the field's Meta says so."""
    return str((meta(kind).extra or {}).get("fix", ""))


# Types that JSON does not have, by class: how they are written, and read back.
_CUSTOM: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


def custom(kind: type, write: Callable[[Any], Any], read: Callable[[Any], Any]) -> None:
    """Teach the codec a type of our own; called once, where the type is defined."""
    _CUSTOM[kind] = (write, read)


def encode_custom(value: Any) -> Any:
    if type(value) in _CUSTOM:
        return _CUSTOM[type(value)][0](value)
    raise NotImplementedError(f"no record holds a {type(value).__name__}")


def decode_custom(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if kind not in _CUSTOM:
        raise NotImplementedError(f"no record holds a {kind.__name__}")
    return _CUSTOM[kind][1](value)


def encode(record: Record) -> bytes:
    """UTF-8 JSON, indented, fields in the order of declaration; equal records give equal bytes.

    A FileRecord begins with its `format`. ValueError for NaN or infinity, which JSON does not have.
    """
    plain = plain_of(record)
    for path, value in _leaves(plain, "$"):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{type(record).__name__} holds {value} at {path}")
    return msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"


def plain_of(record: Record) -> dict[str, Any]:
    """The record as plain data: dicts, lists, text and numbers, a FileRecord's `format` first. As JSON gives it back."""
    plain: dict[str, Any] = _with_lists(msgspec.to_builtins(record, enc_hook=encode_custom))
    return {"format": type(record).FORMAT, **plain} if isinstance(record, FileRecord) else plain


def _with_lists(value: Any) -> Any:
    """Lists in the place of tuples, which msgspec leaves as they are: data that was read equals data that was written."""
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def decode(kind: type[R], data: bytes, *, source: str) -> R:
    """The record that `data` holds. DataError naming `source`, the path inside it, the value and the rule."""
    what, fix = (kind.WHAT, kind.REMEDY) if issubclass(kind, FileRecord) else ("record", "write the file again")
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise DataError(f"{source} is no {what}: {str(e)[:200]}", fix=fix) from e
    if not isinstance(raw, dict):
        raise DataError(f"{source} is no {what}: a JSON object is wanted", fix=fix)
    if issubclass(kind, FileRecord) and raw.pop("format", None) != kind.FORMAT:
        given = msgspec.json.decode(data).get("format")
        raise DataError(
            f"{source} is a {what} of format {shown(given)}, this version reads format {kind.FORMAT}",
            fix=f"{fix}, or use the erq-export version that wrote it",
        )
    return from_plain(kind, raw, source=source, fix=fix)


def from_plain(kind: type[R], raw: dict[str, Any], *, source: str, fix: str = "write the file again") -> R:
    """The record of plain data; DataError as `decode` has it."""
    try:
        return msgspec.convert(raw, kind, dec_hook=decode_custom)
    except msgspec.ValidationError as e:
        rule, path = rule_and_path(e)
        value = _at(raw, path)
        given = "" if value is _ABSENT else f" is {shown(value)}:"
        raise DataError(f"{source}, at {path}{given} {rule}", fix=fix) from e
    except (ErqError, RecursionError) as e:
        raise DataError(f"{source}: {e.problem if isinstance(e, ErqError) else 'nested too deeply'}", fix=fix) from e


def read(kind: type[R], path: Path) -> R:
    """The record in a file; DataError where it cannot be read, is too large, or is not what it should be."""
    fix = kind.REMEDY if issubclass(kind, FileRecord) else "write the file again"
    try:
        if not path.is_file():
            raise DataError(f"there is no {path}", fix=fix)
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise DataError(f"{path} has {size} bytes, a record at most {LARGEST_FILE}", fix=fix)
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}", fix=fix) from e
    return decode(kind, data, source=str(path))


def schema(kind: type[Record]) -> dict[str, Any]:
    """The JSON schema of a record's file."""
    made: dict[str, Any] = msgspec.json.schema(kind, schema_hook=lambda _kind: {"type": "string"})
    if issubclass(kind, FileRecord):
        own = made["$defs"][kind.__name__]
        own["properties"] = {"format": {"const": kind.FORMAT}, **own["properties"]}
        own["required"] = ["format", *own["required"]]
    return made


def shown(value: Any) -> str:
    """A refused value as an error repeats it."""
    text = str(value) if isinstance(value, (int, float)) else repr(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


_PATH = re.compile(r"^(?P<rule>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)
_TYPES = {"`float`": "a number", "`int`": "an integer", "`str`": "text", "`bool`": "true or false", "`array`": "a list"}
_TYPES |= {"`object`": "an object", "`null`": "nothing"}
_ABSENT = object()


def rule_and_path(e: msgspec.ValidationError) -> tuple[str, str]:
    """(the rule that was broken, the path of the value) of msgspec's message."""
    match = _PATH.match(str(e))
    rule, path = (match["rule"], match["path"]) if match else (str(e), "$")
    for code, word in _TYPES.items():
        rule = rule.replace(code, word)
    return rule[:1].lower() + rule[1:].replace("`", ""), path


def _at(raw: Any, path: str) -> Any:
    """The value at a path such as $.layers[3].act_scale; absent where the path ends early or names no key."""
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        try:
            raw = raw[key] if key else raw[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return _ABSENT
    return raw
