"""A package that can be called like the function of its name: `erq_export.calibrate(model, …)`.

The owner's folders are called calibrate and validate, and so are two functions of the API. Python puts an imported
sub-package in the place of the parent's attribute, so the package itself answers the call.
"""

import sys
from types import ModuleType
from typing import Any

from erq_export.contract.registry import resolve_attribute


class CallableModule(ModuleType):
    """A module with a function behind it, "module:attribute", which is loaded when it is called."""

    function: str

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Call the function; its own docstring says what it takes."""
        return resolve_attribute(self.function)(*args, **given)


def make_callable(name: str, function: str) -> None:
    """Let the module `name`, which is being imported, be called as `function`."""
    module = sys.modules[name]
    module.__class__ = CallableModule
    module.function = function  # type: ignore[attr-defined]
