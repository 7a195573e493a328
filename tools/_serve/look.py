"""HTML for pictures and answers, and the page's style, in Gradio's own colours, so that it works in light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

from dassl_lite.classifier import Prediction
from dassl_lite.tools._serve.session import Exported, Lesson, Picture, csv_of, data_uri
from dassl_lite.tools.predict import UNKNOWN
from dassl_lite.utils.errors import printable

# The browser only contacts this server, whatever a page or a library tries.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-ancestors 'self'; form-action 'self'"
)

EXPORTS = "exported"  # path for files that are too large to be embedded in the page

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]

STYLE = """
.gradio-container {width: 100% !important; max-width: 1040px !important; margin: 0 auto !important;}
.gradio-container .prose h1, .gradio-container .prose h2 {margin: 8px 0 4px;}
.gradio-container .html-container, .gradio-container .html-container.padding {padding: 0 !important;}
.dl-html:not(:has(div, p)) {display: none !important;}
.dl-drop .wrap {font-size: 13px !important; line-height: 1.25 !important; min-height: 0 !important;
  padding: 0 !important;}
.dl-drop .wrap svg {height: 18px;}
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
#make-onnx {width: fit-content; align-self: flex-end; font-weight: 400; font-size: 14px; padding: 6px 14px;}
.dl-wide {font-size: 14px; line-height: 22px; margin-bottom: 10px;}
.dl-wide .dl-track {height: 8px; border-radius: 4px;}
.dl-lesson .dl-head {margin: 4px 0 0;}
.dl-thumbs {display: flex; flex-wrap: wrap; gap: 4px; max-height: 156px; overflow-y: auto;}
.dl-thumbs img {width: 48px; height: 48px; object-fit: cover; border-radius: 4px; margin: 0;}
.dl-classes {display: grid !important; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 12px;}
.dl-class {padding: 12px; border: 1px solid var(--border-color-primary); border-radius: 10px; min-width: 0 !important;
  background: var(--block-background-fill);}
.dl-class .dl-title {display: flex; justify-content: space-between; gap: 8px; align-items: baseline; font-weight: 600;
  color: var(--body-text-color); overflow-wrap: anywhere;}
.dl-class .dl-title span {font-weight: 400; font-size: 12px; color: var(--body-text-color-subdued); flex: none;}
.dl-note {color: var(--body-text-color-subdued); font-size: 13px; margin: 0;}
"""


def text(value: object) -> str:
    """Escape a value for use between tags or in an attribute."""
    return html.escape(printable(value), quote=True)


def refusals(lines: Sequence[str]) -> str:
    """A box that names the files that were left out."""
    if not lines:
        return ""
    return f'<div class="dl-refused" role="alert">{"".join(f"<p>{text(line)}</p>" for line in lines)}</div>'


def link(label: str, name: str, address: str) -> str:
    """A button that saves the content at a URL, which may be a data URI, as a file."""
    return f'<a class="dl-button" download="{text(name)}" href="{text(address)}">{text(label)}</a>'


def card(picture: Picture, found: Prediction, names: Sequence[object]) -> str:
    """A picture with a bar per class.

    Args:
        names: names of the classes in ``found``, also where its labels are None.
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


def thumbnails(pictures: Sequence[Picture]) -> str:
    """The pictures of a class."""
    if not pictures:
        return '<p class="dl-note">No pictures yet.</p>'
    images = "".join(f'<img src="{picture.thumbnail}" alt="" title="{text(picture.name)}">' for picture in pictures)
    return f'<div class="dl-thumbs">{images}</div>'


def lesson(found: Lesson, content: bytes) -> str:
    """The result of training, and a button that saves the classifier."""
    how = "each left out in turn" if found.singly else "left out a few at a time"
    low, high = found.interval
    bars = "".join(
        f'<div class="dl-bar dl-wide"><span>{name}</span><span class="dl-percent">{value:.1f} %</span>'
        f'<span class="dl-track"><i style="width:{value:.1f}%"></i></span></div>'
        for name, value in (("Class names alone (zero-shot)", found.zero_shot), ("Trained", found.trained))
    )
    save = link("Download classifier", "classifier.zip", data_uri(content, "application/zip"))
    notes = "".join(f'<p class="dl-note">{text(note)}</p>' for note in found.notes)
    return (
        f'<div class="dl-lesson">{bars}<div class="dl-head"><p class="dl-note">Accuracy on {found.pictures} pictures, '
        f"{how}; 95 % interval {low:.0f} to {high:.0f} %.</p>{save}</div>{notes}</div>"
    )


def exported(found: Exported) -> str:
    """How the ONNX file compares with the classifier, and a button that saves it."""
    result = found.agreement
    save = link("Download ONNX", "classifier-onnx.zip", f"{EXPORTS}/{found.token}")
    return (
        f'<div class="dl-head"><p class="dl-note">{result.megabytes:.1f} MB. Compared on {result.pictures} pictures: '
        f"the likeliest class is the same on {result.agreement:.0f} %, and probabilities differ by at most "
        f"{result.difference:.1e}.</p>{save}</div>"
    )


def answers(
    rows: Sequence[tuple[Picture, Prediction]], names: Sequence[Sequence[object]], refused: Sequence[str]
) -> str:
    """All pictures with their predictions, and a button that saves the table."""
    if not rows:
        return refusals(refused)
    unknown = sum(found.labels[0] is None for _, found in rows)
    summary = f"{len(rows)} picture{'s' if len(rows) > 1 else ''}" + (f", {unknown} unknown" if unknown else "")
    table = csv_of(rows).encode("utf-8", "surrogateescape")
    save = link("Download CSV", "predictions.csv", data_uri(table, "text/csv"))
    cards = "".join(card(*row, class_names) for row, class_names in zip(rows, names, strict=True))
    return (
        f'{refusals(refused)}<div class="dl-head"><span>{summary}</span>{save}</div><div class="dl-grid">{cards}</div>'
    )
