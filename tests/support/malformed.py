"""Files damaged at random, and what may come of reading one: a value, or an error that the user can act on."""

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from erq_export.contract.errors import ErqError

NASTY = (b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**62), struct.pack(">I", 2**31), b"99999999", b"-1", b"{", b'"')


def value_or_error(read: Callable[[], Any]) -> Any:
    """What `read` returns, or the ErqError it raises; anything else that it raises fails the test that asks."""
    try:
        return read()
    except ErqError as e:
        return e


@st.composite
def damaged(draw: st.DrawFn, wholes: tuple[bytes, ...]) -> bytes:
    """One of the whole files with up to eight bytes changed, pieces cut out, doubled or put in, or the end missing. Damage
    falls on the beginning, where headers are, and on the end, where directories are, more often than between."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 8))):
        near = draw(st.sampled_from([64, 512, 4096, len(data)]))
        place = min(draw(st.integers(0, near)), max(0, len(data) - 1))
        if draw(st.booleans()):
            place = max(0, len(data) - 1 - place)
        how = draw(st.sampled_from(["byte", "nasty", "insert", "delete", "cut", "double"]))
        length = draw(st.integers(1, 64))
        match how:
            case "byte":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "nasty":
                piece = draw(st.sampled_from(NASTY))
                data[place : place + len(piece)] = piece
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=32))
            case "delete":
                del data[place : place + length]
            case "cut":
                del data[place:]
            case "double":
                data[place:place] = data[place : place + length]
    return bytes(data)
