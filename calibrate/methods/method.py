"""A method as the rest of the house knows it: its name, its options, and where its solver stands. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from erq_export.contract.errors import SpecError
from erq_export.contract.records import Scalar, checked_value, hints, plain_of
from erq_export.contract.registry import METHODS, resolve, unknown
from erq_export.contract.spec import Quantization

from .options import Options


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to choose integers. All methods quantize the same sites on the same kind of grid; only the choice differs.

    solver: "module:function", called as solve(problem, options) -> Solution for every layer (`solve.problem`).
    """

    name: str
    meaning: str
    options: type[Options]
    solver: str


def method_named(name: str) -> Method:
    """The method of that name; SpecError with the nearest names otherwise."""
    found: Method = resolve("method", name, METHODS)
    return found


def options_of(name: str, given: Mapping[str, Scalar | str], *, typed: bool = False) -> Options:
    """A method's options, the given ones in the place of their defaults.

    typed: the values are words of a command line. SpecError for an unknown name (with the nearest ones, and the method
    that has it, if another does), a wrong type, or a value out of range.
    """
    kind = method_named(name).options
    known = hints(kind)
    for option in given:
        if option not in known:
            raise _no_option(name, option, known)
    values: dict[str, Any] = {
        option: checked_value(value, known[option], word=f"-O {option}", text=typed) for option, value in given.items()
    }
    return kind(**values)


def options_for(quantization: Quantization) -> Options:
    """The typed options of a calibration's slice."""
    return options_of(quantization.method, quantization.options)


def shared_options(name: str, options: Options) -> Options:
    """What another method's options have in common with `name`'s, the rest at their defaults: for a fair comparison."""
    known = hints(method_named(name).options)
    return options_of(name, {key: value for key, value in plain_of(options).items() if key in known})


def _no_option(name: str, option: str, known: Mapping[str, Any]) -> SpecError:
    others = [other for other in METHODS if option in hints(method_named(other).options)]
    if others:
        return SpecError(
            f"-O {option} changes nothing with --method {name}",
            fix=f"leave it out, or --method {' or --method '.join(others)}",
        )
    error = unknown(f"option of --method {name}", option, known)
    return SpecError(error.problem, fix=f"{error.fix} (erq-export methods {name} lists them)")
