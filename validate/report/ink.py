"""A picture of matplotlib's as SVG inside a page: its colours are the page's, so that it is read in light and dark."""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 4.4  # 317 points: narrower than a phone, so that text of 9 points is easily read there
# What is drawn in a colour of the left is shown in the page's of that name. The colours themselves are seen by nobody.
INKS = {
    "ink": "#010101",
    "faint": "#020202",
    "first": "#030303",
    "second": "#040404",
    "third": "#050505",
    "bad": "#060606",
}
STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "axes.axisbelow": True},
    **{"text.color": INKS["ink"], "axes.labelcolor": INKS["ink"], "axes.edgecolor": INKS["faint"]},
    **{"xtick.color": INKS["faint"], "ytick.color": INKS["faint"], "xtick.labelcolor": INKS["ink"]},
    **{"ytick.labelcolor": INKS["ink"], "grid.color": INKS["faint"], "grid.linewidth": 0.4, "grid.alpha": 0.6},
    **{"axes.grid": True, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"},
    **{"figure.facecolor": "none", "savefig.facecolor": "none", "text.parse_math": False},  # names may hold $
}


def picture(name: str, height_in: float, says: str, paint: Callable[["Axes"], None]) -> str | None:
    """What `paint` draws as an `svg` element; None where matplotlib (the extra `report`) is not installed.

    name: unique on the page;  says: what is to be seen, for who cannot.  Equal calls give equal text.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        paint(figure.add_subplot())
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return _inside(written.getvalue(), name, says)


def _inside(svg: str, name: str, says: str) -> str:
    """The drawing alone: no prologue, no metadata, no name space, no fixed size, and no name that another picture has."""
    view = re.search(r'viewBox="([^"]*)"', svg)
    body = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.DOTALL
    )
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w.-]+)\)|href=\"#([\w.-]+)\"", body))
    kept = {one or other for one, other in used}
    body = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in kept else "", body)
    body = re.sub(r"url\(#([\w.-]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([\w.-]+)"', rf'href="#{name}-\1"', body)
    for ink, colour in INKS.items():
        body = body.replace(colour, f"var(--{ink})")
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)  # the page's own letters
    body = re.sub(r"\n\s*", "\n", body)
    box = view[1] if view else "0 0 360 200"
    label = says.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{body.strip()}'
