"""A class map: the text file that says which class index a folder of images has."""

import re
from pathlib import Path

from erq_export.contract.errors import DataError
from erq_export.contract.inputs import regular_file, shown

LARGEST_FILE = 2**24  # bytes; ImageNet-22k's names take a tenth of that
INDEX = re.compile(r"[0-9]{1,9}")  # no other alphabet's digits, which int() would take


def read_class_map(path: Path) -> dict[str, int]:
    """One class folder a line; its class index is the line number from 0 (empty lines do not count), or a second column.

    UTF-8, with or without a byte order mark; lines end as on any system. DataError for anything else in it, and for a
    folder that is named twice.
    """
    fix = "a text file, one class folder a line"
    found = regular_file(path, "--class-map", fix=fix)
    if found.st_size > LARGEST_FILE:
        raise DataError(f"--class-map {shown(path)} has {found.st_size} bytes", fix=fix)
    try:
        text = path.read_text(encoding="utf-8-sig")  # newlines of all systems become \n
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read the --class-map {shown(path)}: {e}", fix=fix) from e
    if "\0" in text:
        raise DataError(f"cannot read the --class-map {shown(path)}: it holds NUL bytes", fix=fix)
    index: dict[str, int] = {}
    lines = [line.split() for line in text.split("\n")]
    for row, words in enumerate(line for line in lines if line):
        if len(words) > 2 or (len(words) == 2 and not INDEX.fullmatch(words[1])):
            raise DataError(
                f"--class-map {shown(path)}: line {row + 1} is {shown(' '.join(words))!r}", fix="FOLDER or FOLDER INDEX"
            )
        if words[0] in index:
            raise DataError(
                f"--class-map {shown(path)}: line {row + 1} names {shown(words[0])} again", fix="one line each"
            )
        index[words[0]] = int(words[1]) if len(words) == 2 else row
    return index
