"""Where in plain data the value is that a record refuses, and the rule that it breaks, in words.

A path is a tuple of steps: fields and keys by name, places in a list by number. msgspec knows the place of a refused value,
but writes `[...]` for the key of a dict: the key is found again by halving the dict until one key is left that is refused.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import msgspec

SHOWN = 60  # characters of a refused value that an error repeats
ABSENT = object()
SOME_KEY = ...  # a step through a dict by a key that is not known yet

Path: TypeAlias = tuple[Any, ...]
Refuses: TypeAlias = Callable[[Any], msgspec.ValidationError | None]  # what a record says of plain data

_MESSAGE = re.compile(r"^(?P<rule>.*) - at `(?P<key>key in )?(?P<path>\$[^`]*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_TYPES = {"`float`": "a number", "`int`": "an integer", "`str`": "text", "`bool`": "true or false", "`array`": "a list"}
_TYPES |= {"`object`": "an object", "`null`": "nothing"}


LONGEST_RULE = 300  # characters of a message


def rule_and_path(e: msgspec.ValidationError) -> tuple[str, Path]:
    """(the rule that was broken, the path of the value or, where a dict's key broke it, of the dict)."""
    match = _MESSAGE.match(str(e))
    rule, text = (match["rule"], match["path"]) if match else (str(e), "$")
    for code, word in _TYPES.items():
        rule = rule.replace(code, word)
    rule = rule[:1].lower() + rule[1:].replace("`", "")
    if len(rule) > LONGEST_RULE:  # an unknown tag is quoted whole
        rule = f"{rule[:LONGEST_RULE]}…"
    steps = tuple(SOME_KEY if some else int(i) if i else name for name, i, some in _STEP.findall(text))
    return (f"a key breaks the rule: {rule}" if match and match["key"] else rule), steps


def found(raw: Any, e: msgspec.ValidationError, refuses: Refuses) -> tuple[str, Path]:
    """(rule, path) with every key named. `refuses` says of a part of `raw` what it said of the whole."""
    rule, path = rule_and_path(e)
    said = path
    while SOME_KEY in path:
        before = path[: path.index(SOME_KEY)]
        keys = list(at(raw, before))
        while len(keys) > 1:
            half = keys[: len(keys) // 2]
            again = refuses(_only(raw, before, half))
            here = again is not None and rule_and_path(again)[1] == said
            keys = half if here else keys[len(half) :]
        raw = _only(raw, before, keys)
        rest = path[len(before) + 1 :]
        path = (*before, *keys, *rest)
    return rule, path


def at(raw: Any, path: Path) -> Any:
    """The value at a path; ABSENT where the path leads nowhere."""
    for step in path:
        try:
            raw = raw[step]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return raw


def written(path: Path) -> str:
    """A path as an error repeats it: $.targets.onnx.layers[3], and a key that is no plain word in quotes."""
    return "$" + "".join(_step(step) for step in path)


def _step(step: Any) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]{0,60}", step) else f"[{shown(step)}]"


def shown(value: Any) -> str:
    """A refused value as an error repeats it."""
    text = _number(value) if isinstance(value, (int, float)) else repr(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _number(value: float) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"an integer of {int(value).bit_length()} bits"


def _only(raw: Any, before: Path, keys: list[str]) -> Any:
    """The data with none but these keys in the dict at `before`."""
    if not before:
        return {key: raw[key] for key in keys}
    step, inner = before[0], _only(raw[before[0]], before[1:], keys)
    if isinstance(raw, dict):
        return {**raw, step: inner}
    return [*raw[:step], inner, *raw[step + 1 :]]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of plain data that is no dict and no list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, value
