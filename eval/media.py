"""Pictures, clips and curves as pieces of HTML that carry their data inside and fetch nothing."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np

from eval.videos import resize

CHART = (560, 240)  # view box of a chart
MARGIN = (46, 12, 34, 12)  # left, top, bottom, right of the plotted area
BOX_COLOUR = (255, 196, 0)


def data_uri(payload: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(payload).decode()}"


def picture(image: np.ndarray, alt: str = "", quality: int = 85) -> str:
    """<img> of a uint8 RGB [H, W, 3] as JPEG."""
    done, payload = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"picture of shape {image.shape} and type {image.dtype} cannot be encoded")
    return f'<img alt="{html.escape(alt)}" src="{data_uri(payload.tobytes(), "image/jpeg")}">'


def mp4(frames: Sequence[np.ndarray], fps: float, width: int = 384) -> bytes:
    """Frames [H, W, 3] uint8 as a small H.264 file that every browser plays (yuv420p), `width` pixels wide at most."""
    height, full = frames[0].shape[:2]
    width = min(width, full) // 2 * 2
    size = (round(height * width / full / 2) * 2, width)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": "24", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(resize(frame, size)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def draw_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with boxes [n, 4] (fractions) outlined."""
    image, scale = image.copy(), np.tile(image.shape[1::-1], 2)
    for x1, y1, x2, y2 in (boxes * scale).round().astype(int).tolist():
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), BOX_COLOUR, 1, cv2.LINE_AA)
    return image


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], width: int = 224, gap: int = 4
) -> np.ndarray:
    """Rows of uint8 [H, W, 3] pictures side by side on white, each `width` pixels wide, rows named in their corner."""
    first = rows[0][0]
    height = round(first.shape[0] * width / first.shape[1])
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            sheet[top : top + height, left : left + width] = resize(image, (height, width))
        _label(sheet[y * (height + gap) :], labels[y])
    return sheet


def _label(corner: np.ndarray, text: str) -> None:
    """Write white on black into the top left of a picture, in place."""
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    cv2.rectangle(corner, (0, 0), (width + 8, height + base + 5), (0, 0, 0), -1)
    cv2.putText(corner, text, (4, height + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    dashed: Sequence[str] = (),
    colours: Mapping[str, int] | None = None,
) -> str:
    """Curves of (x, y) points as inline SVG that follows the page's colours, light or dark.

    dashed   names of references, drawn broken
    colours  name -> place in the page's palette, so that a set keeps its colour from chart to chart
    """
    points = np.array([p for curve in curves.values() for p in curve if np.isfinite(p).all()], float)
    if not len(points):
        return "<p class=note>nothing to draw</p>"
    x_ticks, y_ticks = _ticks(points[:, 0].min(), points[:, 0].max()), _ticks(points[:, 1].min(), points[:, 1].max())
    place = _scale(x_ticks, y_ticks)
    parts = _axes(x_ticks, y_ticks, place, x_label, y_label)
    for index, (name, curve) in enumerate(curves.items()):
        xy = [place(x, y) for x, y in curve if np.isfinite([x, y]).all()]
        style = f'stroke="var(--s{(colours or {}).get(name, index) % 8})"'
        style += ' stroke-dasharray="5 4"' if name in dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
        marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in xy) if len(xy) < 40 else ""
        label = f"<title>{html.escape(name)}</title>"
        parts.append(f'<g class="curve" {style}>{label}<polyline points="{path}"/>{marks}</g>')
    keys = "".join(
        f'<span><i style="background:var(--s{(colours or {}).get(name, i) % 8})"></i>{html.escape(name)}</span>'
        for i, name in enumerate(curves))  # fmt: skip
    svg = f'<svg viewBox="0 0 {CHART[0]} {CHART[1]}" role="img">{"".join(parts)}</svg>'
    return f'<div class="chart">{svg}<div class="keys">{keys}</div></div>'


def _ticks(low: float, high: float, count: int = 5) -> np.ndarray:
    """Round numbers that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    power = 10 ** np.floor(np.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10)
    return np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step


def _scale(x_ticks: np.ndarray, y_ticks: np.ndarray):
    left, top, bottom, right = MARGIN
    width, height = CHART[0] - left - right, CHART[1] - top - bottom

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / max(x_ticks[-1] - x_ticks[0], 1e-12)
        up = (y - y_ticks[0]) / max(y_ticks[-1] - y_ticks[0], 1e-12)
        return left + across * width, top + (1 - up) * height

    return place


def _axes(x_ticks: np.ndarray, y_ticks: np.ndarray, place, x_label: str, y_label: str) -> list[str]:
    parts = []
    for y in y_ticks:
        (x0, at), (x1, _) = place(x_ticks[0], y), place(x_ticks[-1], y)
        parts.append(f'<line class="grid" x1="{x0:.1f}" x2="{x1:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in x_ticks:
        at, bottom = place(x, y_ticks[0])
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{_number(x)}</text>')
    middle = (MARGIN[0] + CHART[0] - MARGIN[3]) / 2
    parts.append(f'<text x="{middle:.1f}" y="{CHART[1] - 3}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text x="{MARGIN[0] + 2}" y="{MARGIN[1] - 2}" class="name">{html.escape(y_label)}</text>')
    return parts


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
