"""Ways in which a record's file can be wrong: every value at every depth, and the bytes themselves."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INFINITE = "\x00infinite"  # stands for a number that JSON text can hold and a float cannot
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 300, 2**63, 2**64, -(2**70), 10**400, 1e308),
    *("", "x", "a\x00b", "x\n", "1", "ü" * 300, "[/red]", "../../etc/passwd", "\u202e", "w9a9"),
    *([], [1], [[]], {}, {"a": 1}, {"": None}, INFINITE),
)


@dataclass(frozen=True)
class Damaged:
    """A file, what was done to it, and where: `path` of the value that was replaced, None where it was no value."""

    data: bytes
    what: str
    path: tuple[Any, ...] | None = None
    value: Any = None


def places(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below the whole."""
    if path:
        yield path
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for step, value in inner:
        yield from places(value, (*path, step))


def every_damage(data: bytes, *, seed: int) -> Iterator[Damaged]:
    """All of one valid file."""
    raw = json.loads(data)
    for path in places(raw):
        if path != ("format",):
            yield from wrong_values(raw, path)
    for path in ((), *(p for p in places(raw) if isinstance(at(raw, p), dict))):
        changed = copy.deepcopy(raw)
        at(changed, path)["surplus"] = 1
        yield Damaged(text(changed), f"a surplus key in {path}")
    for version in (0, 99, "1", True, float(raw["format"]), None, [], 10**400):
        yield Damaged(text(raw | {"format": version}), f"format {str(version)[:20]}")
    yield Damaged(text({k: v for k, v in raw.items() if k != "format"}), "no format")
    yield from wrong_bytes(data, random.Random(seed))


def wrong_values(raw: Any, path: tuple[Any, ...]) -> Iterator[Damaged]:
    """The value at a path left out, and replaced by others."""
    without = copy.deepcopy(raw)
    del at(without, path[:-1])[path[-1]]
    yield Damaged(text(without), f"{path} left out")
    for value in WRONG:
        changed = copy.deepcopy(raw)
        at(changed, path[:-1])[path[-1]] = value
        yield Damaged(text(changed), f"{path} is {str(value)[:20]!r}", path, value)


def wrong_bytes(data: bytes, chance: random.Random) -> Iterator[Damaged]:
    """Cut, flipped, in another encoding, nested without end, or no record at all."""
    for _ in range(40):
        n = chance.randrange(len(data) - 1)
        yield Damaged(data[:n], f"cut at {n}")
        flipped = bytearray(data)
        flipped[n] ^= 1 << chance.randrange(8)
        yield Damaged(bytes(flipped), f"byte {n} flipped")
        yield Damaged(data[:n] + b"\x00" + data[n:], f"NUL at {n}")
    wrapped = b'{"format": 1, "model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for name, whole in (
        ("BOM", b"\xef\xbb\xbf" + data),
        ("UTF-16", data.decode().encode("utf-16")),
        ("UTF-32", data.decode().encode("utf-32")),
        ("empty", b""),
        ("a list", b"[]"),
        ("nothing", b"null"),
        ("a number", b"1e999"),
        ("nested lists", b"[" * 100_000),
        ("nested objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        ("nested inside", wrapped),
        ("twice", data + data),
        ("lone surrogate", data.replace(b'"', b'"\\ud800', 1)),
        ("5000 digits", b'{"format": ' + b"9" * 5000 + b"}"),
    ):
        yield Damaged(whole, name)


def at(raw: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def text(raw: Any) -> bytes:
    return json.dumps(raw).replace(json.dumps(INFINITE), "1e999").encode()
