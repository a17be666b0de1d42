"""Who is told how far a piece of work is: the one meaning of `progress` in every room."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]  # (what, steps done, steps in all)
