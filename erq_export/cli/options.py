"""Command-line options made from records: name, type, default and help are the field's own."""

import ast
from collections.abc import Callable, Iterable
from typing import Any

import rich_click as click

from erq_export.cli.places import PLACE
from erq_export.contract.errors import SpecError
from erq_export.contract.records import Spec, choices, hints, meta
from erq_export.contract.spec import Bits

Command = Callable[..., Any]
FLAGS = {"pretrained": "--pretrained/--no-pretrained", "bench": "--bench", "sensitivity": "--sensitivity"}
NAMES = {
    "targets": "--to",
    "options": "-O",
    "model_args": "--model-arg",
    "also": "--with",
}  # where a field is typed under another name
PAIRS = ("model_args", "preprocess", "options")


def options_of(spec: type[Spec], names: Iterable[str]) -> Callable[[Command], Command]:
    """Options for these fields of a spec, in this order. What is not given arrives as None, or as no item."""

    def decorate(command: Command) -> Command:
        for name in reversed(list(names)):
            command = _option(spec, name)(command)
        return command

    return decorate


def _option(spec: type[Spec], name: str) -> Callable[[Command], Command]:
    annotation, default = hints(spec)[name], default_of(spec, name)
    words = FLAGS.get(name, NAMES.get(name, f"--{name.replace('_', '-')}"))
    said = str(meta(annotation).description or "")
    many = name in PAIRS or isinstance(default, tuple)
    known = choices(annotation)
    if name in FLAGS:
        return click.option(words, name, is_flag=True, default=None, help=said)
    if default not in (None, (), {}) and default is not REQUIRED:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        said = f"{said} [default: {shown}]"
    return click.option(
        words,
        name,
        type=Words(known) if known else str,
        multiple=many,
        default=() if many else None,
        callback=pairs(words) if name in PAIRS else None,
        metavar=_metavar(name, annotation, known),
        help=said,
    )


def store_options(command: Command) -> Command:
    """`--store DIR` and `--no-store`."""
    command = click.option("--no-store", is_flag=True, help="keep nothing for later runs")(command)
    return click.option(
        "--store",
        type=PLACE,
        metavar="DIR",
        help="where artifacts are kept and found again [default: ERQ_EXPORT_STORE, or the user's cache folder]",
    )(command)


REQUIRED = object()


def default_of(spec: type[Spec], name: str) -> Any:
    """The field's default; REQUIRED where it has none."""
    fields = spec.__struct_fields__
    defaults: tuple[Any, ...] = spec.__struct_defaults__
    i = fields.index(name) - (len(fields) - len(defaults))
    if i < 0:
        return REQUIRED
    return {} if defaults[i] is not None and name in PAIRS else defaults[i]


class Words(click.Choice[str]):
    """A choice that completes in the shell and leaves refusing to the record, which knows the nearest right word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


def _metavar(name: str, annotation: Any, known: tuple[str, ...]) -> str | None:
    if name in PAIRS:
        return "NAME=VALUE"
    if known:
        return "|".join(known)
    for kind, word in ((Bits, "w4a4"), (int, "N"), (float, "X")):
        if kind in _kinds(annotation):
            return word
    places = {"checkpoint": "FILE", "class_map": "FILE", "data": "DIR", "val": "DIR", "coco": "DIR", "against": "FILE"}
    return (places | {"canvas": "HxW[,HxW]"}).get(name)


def _kinds(annotation: Any) -> set[Any]:
    """Every type that an annotation is made of."""
    inner = getattr(annotation, "__args__", ())
    return {annotation}.union(*(_kinds(part) for part in inner)) if inner else {annotation}


def pairs(option: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]:
    """A callback that reads repeated NAME=VALUE into a dict. Values of -O stay words, which the option's own type reads;
    others are Python data where they look like it."""

    def read(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not (name and equals and value):
                raise SpecError(f"{option} {text[:60]!r} is not NAME=VALUE", fix=f"for example {_example(option)}")
            found[name] = value if option == "-O" else _value(option, text, value)
        return found

    return read


def _value(option: str, text: str, value: str) -> Any:
    """Numbers, tuples and words; SpecError for any other Python data."""
    try:
        found = ast.literal_eval(value) if value.isascii() and len(value) <= 200 else value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    if isinstance(found, list):
        found = tuple(found)
    plain = (bool, int, float, str, type(None))
    if not isinstance(found, plain) and not (isinstance(found, tuple) and all(isinstance(v, plain[:3]) for v in found)):
        raise SpecError(f"{option} {text[:60]!r}: no number, word or list of numbers", fix=_example(option))
    return found


def _example(option: str) -> str:
    return {"-O": "-O ridge=1e3", "--preprocess": "--preprocess crop_pct=0.9"}.get(option, f"{option} img_size=224")
