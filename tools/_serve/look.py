"""HTML of pictures and answers, and the page's style; Gradio's own colours, so it is right in light and in dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

from dassl_lite.classifier import Prediction
from dassl_lite.tools._serve.session import Picture, csv_of, data_uri
from dassl_lite.tools.predict import UNKNOWN
from dassl_lite.utils.errors import printable

# Whatever a page or a library tries, the browser asks this server only.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'self'; form-action 'self'"
)

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]

STYLE = """
.gradio-container {width: 100% !important; max-width: 1040px !important; margin: 0 auto !important;}
footer {display: none !important;}
.dl-grid {display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 12px;}
.dl-card {display: flex; gap: 12px; padding: 10px; border: 1px solid var(--border-color-primary);
  border-radius: 10px; background: var(--block-background-fill); min-width: 0;}
.dl-card img {width: 84px; height: 84px; object-fit: cover; border-radius: 6px; flex: none; margin: 0;}
.dl-card .dl-text {flex: 1; min-width: 0;}
.dl-name {color: var(--body-text-color-subdued); font-size: 12px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap;}
.dl-label {font-weight: 600; font-size: 15px; margin-bottom: 4px; overflow-wrap: anywhere;
  color: var(--body-text-color);}
.dl-unknown .dl-label {color: var(--body-text-color-subdued); font-style: italic;}
.dl-bar {display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 1px 8px; font-size: 12px; line-height: 16px;
  margin-bottom: 3px; color: var(--body-text-color);}
.dl-bar span:first-child {overflow: hidden; text-overflow: ellipsis; white-space: nowrap;}
.dl-bar .dl-percent {font-variant-numeric: tabular-nums;}
.dl-track {grid-column: 1 / 3; height: 4px; border-radius: 2px; background: var(--border-color-primary);
  overflow: hidden;}
.dl-track i {display: block; height: 100%; background: var(--color-accent);}
.dl-unknown .dl-track i {background: var(--body-text-color-subdued);}
.dl-refused {margin: 0 0 12px; padding: 8px 12px; border-radius: 8px; font-size: 13px;
  border: 1px solid #d97706; color: var(--body-text-color);}
.dl-refused p {margin: 0; overflow-wrap: anywhere;}
.dl-head {display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; justify-content: space-between;
  margin: 0 0 12px; color: var(--body-text-color);}
a.dl-button, a.dl-button:visited {display: inline-block; padding: 6px 14px; border-radius: 8px; font-size: 14px;
  text-decoration: none; color: var(--button-secondary-text-color);
  background: var(--button-secondary-background-fill); border: 1px solid var(--border-color-primary);}
a.dl-button:hover {background: var(--button-secondary-background-fill-hover);}
.dl-note {color: var(--body-text-color-subdued); font-size: 13px; margin: 0;}
"""


def text(value: object) -> str:
    """As text between tags, or as an attribute."""
    return html.escape(printable(value), quote=True)


def refusals(lines: Sequence[str]) -> str:
    """A box that names the files that were left out."""
    if not lines:
        return ""
    return f'<div class="dl-refused" role="alert">{"".join(f"<p>{text(line)}</p>" for line in lines)}</div>'


def link(label: str, name: str, content: bytes, kind: str) -> str:
    """A button that saves ``content``, which is in the page itself, as a file."""
    return f'<a class="dl-button" download="{text(name)}" href="{data_uri(content, kind)}">{text(label)}</a>'


def card(picture: Picture, found: Prediction, names: Sequence[object]) -> str:
    """A picture with a bar per class.

    Args:
        names: of the classes of ``found``, also where its labels are None.
    """
    first = found.labels[0]
    unknown = " dl-unknown" if first is None else ""
    bars = "".join(
        f'<div class="dl-bar"><span>{text(name)}</span><span class="dl-percent">{100 * p:.0f} %</span>'
        f'<span class="dl-track"><i style="width:{100 * p:.1f}%"></i></span></div>'
        for name, p in zip(names, found.probabilities, strict=True)
    )
    label = UNKNOWN if first is None else first
    return (
        f'<div class="dl-card{unknown}"><img src="{picture.thumbnail}" alt=""><div class="dl-text">'
        f'<div class="dl-name" title="{text(picture.name)}">{text(picture.name)}</div>'
        f'<div class="dl-label">{text(label)}</div>{bars}</div></div>'
    )


def answers(
    rows: Sequence[tuple[Picture, Prediction]], names: Sequence[Sequence[object]], refused: Sequence[str]
) -> str:
    """All pictures with what they show, and a button for the table."""
    if not rows:
        return refusals(refused)
    unknown = sum(found.labels[0] is None for _, found in rows)
    told = f"{len(rows)} picture{'s' if len(rows) > 1 else ''}" + (f", {unknown} unknown" if unknown else "")
    save = link("Download CSV", "predictions.csv", csv_of(rows).encode("utf-8", "surrogateescape"), "text/csv")
    cards = "".join(card(*row, own) for row, own in zip(rows, names, strict=True))
    return f'{refusals(refused)}<div class="dl-head"><span>{told}</span>{save}</div><div class="dl-grid">{cards}</div>'
