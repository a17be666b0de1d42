"""Typed records and their one codec: whatever is written to a file or read from one is a record.

A constraint stands beside the field that it constrains, as `Annotated[float, Meta(gt=0, description=…)]`. The command line,
the Python API, what is accepted from a file and the JSON schemas in `docs/schemas` all come from that declaration.
Records from elsewhere are untrusted: an unknown field, another type at any depth, or another version is a DataError that
names file, path inside it, value and rule.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from erq_export.contract.damage import ABSENT, at, found, leaves, rule_and_path, shown, written
from erq_export.contract.errors import DataError, ErqError, SpecError
from erq_export.contract.registry import unknown

LARGEST_FILE = 2**28  # bytes of a record: 256 MiB; the report of the largest model has some 100 KiB

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
ModulePath = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*$(?!\n)")]
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
    every = get_type_hints(kind, include_extras=True)
    return {name: every[name] for name in kind.__struct_fields__}


def meta(annotation: Any) -> Meta:
    """The first Meta beside a type, or an empty one."""
    return next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Meta)), Meta())


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that a field, or an item of its list, can be: a Literal's, or the `enum` beside it; empty where any will
    do, and where a number will."""
    if get_origin(annotation) is Literal:
        return tuple(str(word) for word in get_args(annotation))
    if words := (meta(annotation).extra_json_schema or {}).get("enum"):
        return tuple(words)
    parts = [part for part in get_args(annotation) if not isinstance(part, Meta)]
    if any((get_args(part) or (part,))[0] in (int, float) for part in parts):
        return ()
    return tuple(word for part in parts for word in choices(part))


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
        rule = "not of the form wanted" if "matching regex" in rule else rule
        raise SpecError(
            f"{word} {shown(value)}: {rule}", fix=remedy(kind) or f"a value of {word} that keeps the rule"
        ) from e
    except UnicodeEncodeError as e:
        raise SpecError(
            f"{word} {shown(value)}: not valid UTF-8",
            fix=remedy(kind) or f"{word} with text, or a file renamed to text",
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
    for path, value in leaves(plain):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{type(record).__name__} holds {value} at {written(path)}")
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


def decode(kind: type[R], data: bytes, *, source: str) -> R:
    """The record that `data` holds. DataError naming `source`, the path inside it, the value and the rule."""
    what, fix = (kind.WHAT, kind.REMEDY) if issubclass(kind, FileRecord) else ("record", "write the file again")
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise DataError(f"{source} is no {what}: {str(e)[:200]}", fix=fix) from e
    if not isinstance(raw, dict):
        raise DataError(f"{source} is no {what}: a JSON object is wanted", fix=fix)
    if issubclass(kind, FileRecord):
        given = raw.pop("format", None)
        if type(given) is not int or given != kind.FORMAT:
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
        rule, path = found(raw, e, lambda part: _refusal(kind, part))
        raise _damaged(source, raw, path, rule, fix) from e
    except ErqError as e:
        raise _damaged(source, raw, _refused_at(kind, raw), e.problem, fix) from e
    except RecursionError as e:
        raise DataError(f"{source}: nested too deeply", fix=fix) from e


def _damaged(source: str, raw: Any, path: tuple[Any, ...], rule: str, fix: str) -> DataError:
    value = at(raw, path)
    given = "" if value is ABSENT or not path else f" is {shown(value)}:"
    return DataError(f"{source}, at {written(path)}{given} {rule}", fix=fix)


def _refusal(kind: Any, raw: Any) -> msgspec.ValidationError | None:
    """What msgspec says of plain data; None where it takes it, or a record's own rule refuses it."""
    try:
        msgspec.convert(raw, kind, dec_hook=decode_custom)
    except msgspec.ValidationError as e:
        return e
    except ErqError:
        return None
    return None


def _refused_at(kind: Any, raw: Any, path: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """Where data is whose types are right but which a record's own rule, or a type of our own, refuses."""
    for step, inner, value in _parts(kind, raw):
        try:
            msgspec.convert(value, inner, dec_hook=decode_custom)
        except ErqError:
            return _refused_at(inner, value, (*path, step))
        except msgspec.ValidationError:
            continue
    return path


def _parts(kind: Any, raw: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(step, type, value) of everything directly inside a value of that type."""
    if isinstance(kind, type) and issubclass(kind, Record) and isinstance(raw, dict):
        yield from ((name, rule, raw[name]) for name, rule in hints(kind).items() if name in raw)
    for inner in get_args(kind):
        if get_origin(kind) is tuple and isinstance(raw, list):
            yield from ((i, inner, value) for i, value in enumerate(raw))
        elif get_origin(kind) is dict and isinstance(raw, dict):
            yield from ((key, inner, value) for key, value in raw.items())
        elif not isinstance(inner, Meta):  # a description beside it, or one of several types
            yield from _parts(inner, raw)


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
