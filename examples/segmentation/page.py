"""HTML and CSS of the page examples/app.py: messages, the comparison of an image with its overlay, and the legend."""

import base64
import html
import io

from PIL import Image

SHOWN = 1600  # longest side of the pictures on the page, in pixels
CSS = """
.gradio-container .main { max-width: 1180px !important; padding: 16px !important; }
.gradio-container .prose p { margin-bottom: 0; }
.html-container { padding: 0 !important; }
#examples { gap: 8px; flex-wrap: nowrap; }
#examples button { flex-direction: column; gap: 4px; padding: 6px; font-weight: 400; white-space: nowrap; }
#examples button img { width: 100%; height: auto; aspect-ratio: 1; max-width: 96px; margin: 0; border-radius: 6px; }
#layout { display: grid; grid-template: "inputs result" auto "settings result" 1fr / 2fr 3fr; gap: 16px; }
#inputs { grid-area: inputs; min-width: 0 !important; }
#result { grid-area: result; min-width: 0 !important; }
#settings { grid-area: settings; min-width: 0 !important; }
@media (max-width: 760px) { #layout { grid-template: none; } #layout > * { grid-area: auto; } }
.icon-button-wrapper:not(:has(*)) { display: none !important; }
#image img { width: 100%; height: 100%; object-fit: contain; }
.prose h2 { margin: 4px 0 0 !important; }
:focus-visible, .compare:has(input:focus-visible) { outline: 3px solid var(--color-accent) !important;
    outline-offset: 2px; }
.wrap:has(> .wrap-inner input:focus-visible) { outline: 3px solid var(--color-accent); border-radius: 4px; }
.wrap-inner input:focus-visible { outline: none !important; }
.compare { --at: 50%; position: relative; width: min(100%, 480px * var(--ratio)); aspect-ratio: var(--ratio);
    margin: 0 auto !important; border-radius: 8px; overflow: hidden; }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0 !important; border-radius: 0; }
.compare img.over { clip-path: inset(0 0 0 var(--at)); }
.compare span { position: absolute; pointer-events: none; }
.compare .tag { top: 10px; padding: 2px 10px; border-radius: 6px; background: #fffffff0; color: #1f2937;
    font-weight: 600; font-size: 14px; }
.compare .edge { left: var(--at); inset-block: 0; width: 3px; margin-left: -1.5px; background: #fff;
    box-shadow: 0 0 4px #0009; }
.compare .edge::after { content: "◂ ▸"; position: absolute; top: 50%; left: 50%; translate: -50% -50%; width: 44px;
    height: 44px; line-height: 42px; text-align: center; border-radius: 50%; background: #fff; color: #1f2937;
    box-shadow: 0 1px 6px #0008; white-space: pre; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
    appearance: none; touch-action: pan-y; }
.compare input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.compare input::-moz-range-thumb { width: 1px; height: 100%; border: none; }
.legend { width: 100%; border-collapse: collapse; margin: 8px 0 0 !important; table-layout: fixed; }
.legend, .legend tbody, .legend thead, .legend tr, .legend th, .legend td { border: none !important;
    background: none !important; }
.legend th, .legend td { padding: 4px 8px !important; text-align: left; font-weight: 400; overflow-wrap: anywhere; }
.legend thead th { font-weight: 600; font-size: 14px; }
.legend .swatch { width: 18px; height: 18px; border-radius: 4px; box-shadow: 0 0 0 1px #8888; }
.legend .bar { height: 10px; border-radius: 5px; min-width: 2px; box-shadow: 0 0 0 1px #8886; }
.legend .share { text-align: right !important; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { padding: 4px 8px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.dark .prose a { color: var(--primary-300) !important; }
.note.empty { border: 2px dashed #8888; border-radius: 8px; padding: 96px 16px; text-align: center; }
.wrong { color: #b42318; background: #fef3f2; border: 1px solid #fda29b; border-radius: 8px; padding: 10px 14px;
    overflow-wrap: anywhere; }
.dark .wrong { color: #fecdca; background: #55160c; border-color: #b42318; }
.card { overflow-x: auto; overflow-wrap: anywhere; }
.card :is(th, td) { overflow-wrap: normal; word-break: normal; }
.card thead:not(:has(th:not(:empty))) { display: none; }
.card :is(h1, h2, h3) { margin: 20px 0 8px !important; }
body:not(.dark) { --block-label-text-color: var(--primary-700); --block-title-text-color: var(--primary-700);
    --block-info-text-color: var(--neutral-600); --body-text-color-subdued: var(--neutral-600);
    --button-primary-background-fill: var(--primary-600); --button-primary-background-fill-hover: var(--primary-700); }
footer { display: none !important; }
"""


def wrong(message: str) -> str:
    """Format an error as HTML."""
    return f'<div class="wrong" role="alert">{html.escape(message)}</div>'


def note(message: str, kind: str = "note") -> str:
    """Format a remark as HTML, which screen readers announce."""
    return f'<div class="{kind}" role="status">{html.escape(message)}</div>'


def legend(areas: list[dict], palette: list) -> str:
    """Format the classes in an image as an HTML table, largest first."""
    rows = []
    for area in areas:
        color = "rgb({}, {}, {})".format(*(palette[area["label"]] if area["label"] < len(palette) else (0, 0, 0)))
        rows.append(
            f'<tr><td><div class="swatch" style="background: {color}"></div></td>'
            f'<th scope="row">{html.escape(str(area["name"]))}</th>'
            f'<td><div class="bar" style="width: {100 * area["share"]:.1f}%; background: {color}">'
            f'</div></td><td class="share">{area["share"]:.1%}</td></tr>'
        )
    widths = "".join(f'<col style="width: {width}">' for width in ("36px", "auto", "38%", "64px"))
    head = '<th scope="col" colspan="2">Class</th><th scope="col" colspan="2" class="share">Share of the pixels</th>'
    return (
        f'<table class="legend"><colgroup>{widths}</colgroup><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def data_url(picture: Image.Image) -> str:
    """Encode a picture for an HTML page."""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def comparison(picture: Image.Image, drawn: Image.Image, areas: list[dict]) -> str:
    """Format an image and its overlay as HTML, with a slider between them.

    The slider is a range input, which the keyboard and screen readers can operate; gradio's ImageSlider needs a mouse.
    """
    scale = min(SHOWN / max(picture.size), 1)
    size = tuple(max(round(side * scale), 1) for side in picture.size)
    before, after = (
        data_url(one.resize(size, Image.Resampling.LANCZOS) if scale < 1 else one) for one in (picture, drawn)
    )
    shares = ", ".join(f"{area['name']} {area['share']:.1%}" for area in areas)
    return (
        f'<div class="compare" style="--ratio: {size[0] / size[1]:.4f}"><img src="{before}" alt="The image">'
        f'<img class="over" src="{after}" alt="The image with its classes drawn over it: {html.escape(shares)}">'
        '<span class="edge"></span><span class="tag" style="left: 10px">Image</span>'
        '<span class="tag" style="right: 10px">Overlay</span><input type="range" min="0" max="100" step="any" '
        'value="50" aria-label="Compare: percentage of the image without overlay" '
        "oninput=\"this.parentElement.style.setProperty('--at', this.value + '%')\"></div>"
    )


def link(url: str, text: str) -> str:
    """Format a link as HTML."""
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener">{html.escape(text)}</a>'
