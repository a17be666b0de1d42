"""Which entries go when a store is too large, or the disk is full: the least recently used, never one in use."""

from collections.abc import Callable

from erq_export.flow.store.shelf import Kept, Shelf


def keep_within(shelf: Shelf, limit_bytes: int, evicted: Callable[[Kept], None]) -> bool:
    """Bring the store to its limit; is it there now? `evicted(item)` is called for each thing removed.

    What is alone larger than the limit can never be kept: it goes first, as soon as nobody uses it, and until then it
    doesn't count, so that it never drives out what can be kept. Then the least recently used go until the rest fits.
    What is in use stays even if the store is then over its limit; the next call looks again. StoreTrouble where the disk
    fails.
    """
    items = shelf.items()
    total = sum(item.size for item in items if item.size <= limit_bytes)
    n_too_large = sum(item.size > limit_bytes for item in items)
    for item in items:
        too_large = item.size > limit_bytes
        if too_large or total > limit_bytes:
            removal = shelf.remove_if_idle(item)
            if removal != "in use":
                n_too_large -= too_large
                total -= 0 if too_large else item.size
            if removal == "removed":
                evicted(item)
    return total <= limit_bytes and not n_too_large


def make_room(shelf: Shelf, n_bytes: int, spare: tuple[str, str] | None, evicted: Callable[[Kept], None]) -> None:
    """For a full disk: remove the least recently used until `n_bytes` are free, or half of what was kept, whichever is more.

    Nobody can know how much the artifact `spare` = (kind, key), if any, will still need; its own checkpoints stay.
    """
    items = [item for item in shelf.items() if (item.kind, item.key) != spare]
    goal = max(n_bytes, sum(item.size for item in items) // 2)
    for item in items:
        if goal > 0 and shelf.remove_if_idle(item) == "removed":
            goal -= item.size
            evicted(item)
