"""manifest.json of a run: what was asked, with what, what it cost, and every file that the run wrote."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from erq_export.contract.cost import StageCost
from erq_export.contract.errors import DataError
from erq_export.contract.records import FileRecord, Record, Sha256

# No name in it is empty, begins with a dot, or holds a backslash or control character: nothing leads out of the folder.
_NAME = r"(?!\.)[^/\\\x00-\x1f]+"
RelativePath = Annotated[str, Meta(min_length=1, max_length=1000, pattern=rf"^{_NAME}(/{_NAME})*$(?!\n)")]
PARTIAL = r"\.erq-export-partial-[0-9a-f]{16}"  # the name of what is being written


class OwnedFile(Record, frozen=True, kw_only=True):
    """A file that the run wrote: where in the folder, its size in bytes, its hash."""

    path: RelativePath
    bytes: Annotated[int, Meta(ge=0, le=2**53)]
    sha256: Sha256


class Placement(Record, frozen=True, kw_only=True):
    """Files that are changing places: those of `arriving` come out of the folder `staging`, those of `leaving` are removed.

    It stands in the manifest while that lasts, so that whoever finds the folder after a kill can end it.
    """

    staging: Annotated[str, Meta(pattern=rf"^{PARTIAL}$(?!\n)")]
    arriving: tuple[OwnedFile, ...]
    leaving: tuple[OwnedFile, ...]


class RunManifest(FileRecord, frozen=True, kw_only=True):
    """What a run was and what of its folder is its own. Holds no path of the machine but those that the user typed.

    command: the words of the command line, none where Python called;  job: what was asked, as plain data;
    weights, images, artifacts: sha256 by name;  files: all that the run has written so far, this file aside.
    """

    WHAT: ClassVar[str] = "manifest of a run"

    erq_export: str
    command: tuple[str, ...] = ()
    job: dict[str, Any] = {}
    complete: bool = False
    weights: dict[str, Sha256] = {}
    images: dict[str, Sha256] = {}
    artifacts: dict[str, Sha256] = {}
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}
    timings: tuple[StageCost, ...] = ()
    files: tuple[OwnedFile, ...] = ()
    placing: Placement | None = None

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if len(set(paths)) < len(paths) or "manifest.json" in {file.path for file in self.claimed()}:
            raise DataError("a manifest lists each file once, and never itself", fix=self.REMEDY)

    def claimed(self) -> tuple[OwnedFile, ...]:
        """Every file that may lie there and be the run's: also those that were arriving or leaving when it was killed."""
        return self.files + (() if self.placing is None else self.placing.arriving + self.placing.leaving)
