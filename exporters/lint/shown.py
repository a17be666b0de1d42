"""Names and paths as they may be printed: on one line, without control characters, and no longer than a few lines."""

_LONGEST = 400


def shown(name: object) -> str:
    """The name itself where it is ordinary; escaped where a terminal or a codec would stumble, cut where it is long."""
    text = str(name)
    return escaped(text if len(text) <= _LONGEST else f"{text[:300]}…{text[-50:]} ({len(text)} characters)")


def escaped(text: object) -> str:
    """Whole, for paths. A byte that is not UTF-8 becomes \\udc and its value."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
