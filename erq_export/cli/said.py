"""What a refusal looks like on a terminal: two lines, the problem and the fix, whoever refused."""

import rich_click as click
from click.exceptions import NoSuchOption

from erq_export.contract.registry import nearest

LONGEST = 1500  # characters of a problem or a fix


def refusal(problem: str, fix: str) -> str:
    """Both lines; nothing in them moves the cursor, colours the terminal or fills it."""
    return f"error: {plain(problem)}\n  fix: {plain(fix)}"


def plain(text: str) -> str:
    r"""Text as a terminal and a log can take it: control characters and bytes that are no text as \x1b, at most a screen."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def misuse(e: click.UsageError) -> str:
    """The refusal of words that click could not place: what to type instead."""
    command = "erq-export" if e.ctx is None else e.ctx.command_path
    usage = f"{command} --help shows how it is used"
    if isinstance(e, NoSuchOption):
        name = e.option_name
        known = (
            [] if e.ctx is None else [o for p in e.ctx.command.get_params(e.ctx) for o in (*p.opts, *p.secondary_opts)]
        )
        close = nearest(name[:100].replace("_", "-"), [o for o in known if o.startswith("-")])
        fix = f"did you mean {' or '.join(close)}? {usage}" if close else usage
        return refusal(f"{command} has no option {shortened(name)}", fix)
    return refusal(shortened(e.format_message().rstrip("."), 300), usage)


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
