"""Names of files and folders as words of the command line: an empty one, which would mean the current folder, is refused."""

from pathlib import Path
from typing import Any

import rich_click as click

from erq_export.contract.errors import SpecError


class Place(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A path. SpecError for a name that no file has: the empty one, as an unset variable of a shell gives, or one with NUL."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ARG002
        word = "a name" if param is None else param.opts[0] if param.opts[0].startswith("-") else param.opts[0].upper()
        text = str(value)
        if not text.strip():
            raise SpecError(f"{word} is empty", fix=f"the name of a file or folder for {word}; . is the current folder")
        if "\0" in text:
            raise SpecError(f"{word} holds the character NUL, which no name can", fix=f"another name for {word}")
        return Path(text)


PLACE = Place()
