"""One artifact found or made on one shelf, while its key is held."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from erq_export.flow.store.checkpoints import Checkpoints
from erq_export.flow.store.entry import Work
from erq_export.flow.store.log import Happened
from erq_export.flow.store.record import Damaged, EntryRecord, size_below
from erq_export.flow.store.shelf import Shelf
from erq_export.flow.store.trouble import StoreTrouble, identity_of, trouble_behind

Tell = Callable[[Happened, str, str, str], None]  # event, kind, key, why


def find(shelf: Shelf, kind: str, key: str, tell: Tell) -> EntryRecord | None:
    """The entry's record, its files checked; None where there is none. A damaged one is removed, and told."""
    try:
        return shelf.found(kind, key)
    except Damaged as e:
        tell("damaged", kind, key, str(e))
        shelf.discard(kind, key)
        return None


@contextmanager
def working(
    shelf: Shelf, kind: str, key: str, older: Path | None, complain: Callable[[OSError], None]
) -> Iterator[Work]:
    """A fresh folder to make the artifact in, removed at the end where it wasn't published, and its checkpoints."""
    files = shelf.begin(kind, key)
    try:
        yield Work(files, Checkpoints(shelf.checkpoints(kind, key), older=older, complain=complain))
    finally:
        shelf.abandon(files)


def make_on(
    shelf: Shelf, kind: str, key: str, description: str, make: Callable[[Work], None], work: Work, tell: Tell
) -> EntryRecord:
    """Call `make(work)`, publish what it wrote, forget its checkpoints.

    StoreTrouble where the shelf's place failed, with the bytes that had been written; make's own errors unchanged.
    """
    identity = identity_of(work.folder) or (0, 0)
    tell("begun", kind, key, "")
    try:
        make(work)
    except Exception as e:
        found = trouble_behind(e, work.folder, identity)
        if found is None:
            raise
        found.n_bytes = size_below(work.folder)
        raise found from e
    try:
        record = shelf.publish(kind, key, description, work.folder, identity)
    except StoreTrouble as t:
        t.n_bytes = size_below(work.folder)
        raise
    tell("made", kind, key, "")  # not before: a kill in between would let it be made, and told, once more
    work.checkpoints.discard()
    return record
