"""What a run tells while it works: the face that the pipeline talks to, whatever draws it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Ui(Protocol):
    """Told by the pipeline; the command line draws it, a library caller may stay silent."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage begins; it ends when the block does."""

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of the stage is done."""

    def note(self, text: str) -> None:
        """Something the user should know now."""


class Silent:
    """A Ui that nobody watches: what the Python API has unless it is asked to draw."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:  # noqa: ARG002 - a Ui's signature
        """Nothing is shown."""
        yield

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""


SILENT = Silent()
