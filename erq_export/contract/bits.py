"""Designed precision: weight and activation bits of a model, and the layers that have others.

Text:  w4a4,blocks.0.*=w8a8,head=w8a8    a base, then overrides: a glob over layer paths, "=", that layer's bits; later ones win
"""

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from erq_export.contract.errors import SpecError
from erq_export.contract.records import custom

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(3, 9)
PACKED_BITS = 4  # the most that an INT4 initializer holds
BRIEF = 2  # overrides that a sentence or a title still names
GLOB = re.compile(r"[*?\[]")
PATTERN = re.compile(r"[A-Za-z0-9_.*?!\[\]-]{1,200}")
MOST_OVERRIDES = 2000  # more layers than any model here has

Override = tuple[str, "Bits"]


class Bits:
    """w weight bits and a activation bits, and `overrides` by layer; the container that carries them is int8 or uint8.

    In files it is text, which is why it is no dataclass: the codec would make an object of one. Overrides stand in the same
    order however they were given, so equal settings are equal text (`canonical`).
    """

    __slots__ = ("a", "overrides", "w")
    w: int
    a: int
    overrides: tuple[Override, ...]

    def __init__(self, *, w: int, a: int, overrides: Iterable[Override] = ()) -> None:
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "overrides", ())
        if self.w not in WEIGHT_BITS:
            raise SpecError(f"--bits {self}: {self.w} weight bits", fix="2 to 8 weight bits, for example --bits w4a4")
        if self.a not in ACTIVATION_BITS:
            raise SpecError(
                f"--bits {self}: {self.a} activation bits", fix="3 to 8 activation bits, for example --bits w4a8"
            )
        object.__setattr__(self, "overrides", canonical(overrides))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self} does not change")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bits) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return ",".join([f"w{self.w}a{self.a}", *(f"{pattern}={bits}" for pattern, bits in self.overrides)])

    def __repr__(self) -> str:
        own = f", overrides={self.overrides}" if self.overrides else ""
        return f"Bits(w={self.w}, a={self.a}{own})"

    def __reduce__(self) -> tuple[object, ...]:
        return Bits.parse, (str(self),)

    @property
    def base(self) -> "Bits":
        """The setting without its overrides."""
        return Bits(w=self.w, a=self.a)

    @property
    def brief(self) -> str:
        """For sentences and titles: many overrides are counted, not named."""
        n = len(self.overrides)
        return str(self) if n <= BRIEF else f"{self.base} with {n} overrides"

    @property
    def packable(self) -> bool:
        """May a layer have weights that an INT4 initializer holds?"""
        return min(self.w, *(bits.w for _, bits in self.overrides), 8) <= PACKED_BITS

    def at(self, path: str) -> "Bits":
        """The bits of the layer at this path."""
        found = [bits for pattern, bits in self.overrides if fnmatchcase(path, pattern)]
        return found[-1] if found else self.base

    def all_at(self, bits: "Bits") -> "Bits":
        """The setting in which every layer has these bits, over the same base."""
        return self.base if bits == self.base else Bits(w=self.w, a=self.a, overrides=[("*", bits)])

    def over(self, *overrides: Override) -> "Bits":
        """The setting with further overrides, which win over those it has."""
        return Bits(w=self.w, a=self.a, overrides=(*self.overrides, *overrides))

    def check(self, paths: Iterable[str]) -> None:
        """SpecError for an override that no layer of a model has, naming the layer whose path is nearest."""
        known = list(paths)
        for pattern, bits in self.overrides:
            if not any(fnmatchcase(path, pattern) for path in known):
                plain = re.sub(r"[*?!\[\]]", "", pattern)
                near = max(known, key=lambda path: difflib.SequenceMatcher(None, plain, path).ratio(), default="none")
                raise SpecError(
                    f"--bits …{pattern}={bits}: no layer has a path like {pattern}",
                    fix=f"a layer's path or a glob over paths; the nearest layer is {near}, and all {len(known)} are '*'",
                )

    @classmethod
    def parse(cls, text: object) -> "Bits":
        """Read "w4a4", or "w4a4,head=w8a8". SpecError for any other form; other scripts' digits are none."""
        base, *rest = text.split(",") if isinstance(text, str) else (str(text),)
        if len(rest) > MOST_OVERRIDES:
            raise SpecError(
                f"--bits has {len(rest)} overrides", fix=f"at most {MOST_OVERRIDES}; a glob names many layers"
            )
        w, a = _pair(base, of=text)
        overrides: list[Override] = []
        for part in rest:
            pattern, equals, own = (word.strip() for word in part.partition("="))
            if not (equals and PATTERN.fullmatch(pattern)):
                raise SpecError(
                    f"--bits …,{part[:60]!r} is not of the form LAYER=w<weight bits>a<activation bits>",
                    fix="for example --bits w4a4,head=w8a8 (LAYER: a layer's path, or a glob such as blocks.0.*)",
                )
            own_w, own_a = _pair(own, of=own)
            overrides.append((pattern, Bits(w=own_w, a=own_a)))
        return cls(w=w, a=a, overrides=overrides)


def _pair(part: str, *, of: object) -> tuple[int, int]:
    match = re.fullmatch(r"w([0-9]{1,3})a([0-9]{1,3})", part.strip().lower())
    if not match:
        raise SpecError(
            f"--bits {str(of)[:40]!r} is not of the form w<weight bits>a<activation bits>",
            fix="for example --bits w4a4 (weights 2 to 8, activations 3 to 8), or w4a4,head=w8a8 for a layer of its own",
        )
    return int(match[1]), int(match[2])


def canonical(overrides: Iterable[Override]) -> tuple[Override, ...]:
    """The overrides in the one order that stands for all that mean the same.

    Of a pattern that comes twice the last one counts. Two neighbours may change places where they ask for the same bits, or
    where each names one layer, and another: the order is the one in which the first of those that may come first stands
    first, and so on (the lexicographic normal form of a trace).
    """
    last: dict[str, Bits] = {}
    for pattern, bits in overrides:
        last.pop(pattern, None)
        last[pattern] = bits
    left = list(last.items())
    behind = [sum(not _commute(one, other) for one in left[:i]) for i, other in enumerate(left)]
    waiting, found = set(range(len(left))), []
    while waiting:
        first = min((i for i in waiting if not behind[i]), key=lambda i: (left[i][0], str(left[i][1])))
        waiting.remove(first)
        found.append(left[first])
        for i in waiting:
            behind[i] -= i > first and not _commute(left[first], left[i])
    return tuple(found)


def _commute(one: Override, other: Override) -> bool:
    return one[1] == other[1] or not (GLOB.search(one[0]) or GLOB.search(other[0]))


custom(Bits, str, Bits.parse)
