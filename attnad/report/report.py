"""The report on scored images: a table, a heat map of each image, and one page that stands alone.

Colours have one scale everywhere, from 0 (normal) to 1 (anomalous); nothing is stretched per image or per test set.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnad.report.plotting import COLOURS
from attnad.training.storage import write_atomically

MAP_SIDE, THUMBNAIL_SIDE = 1024, 320  # longest sides in pixels: of the files in maps/, of the pictures in the page
MOST_SHRUNK, SEEN = 4, 2  # times on a side without a word; pixels of the run that a defect should have at least
HEAD = ("file", "score", "p_value", "anomalous", "threshold", "map_mean", "map_max", "map")  # of scores.csv


@cache
def _palette() -> bytes:
    import matplotlib  # here, since it writes a cache into the user's home as it loads

    return matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3].tobytes()


def heat_map(anomaly_map: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """Colour an anomaly map [s, s] in [0, 1], resized to size (width, height) in pixels where one is given.

    Returns a palette image whose indices are round(255 * value): the PNG keeps the values behind the colours.
    """
    picture = Image.fromarray((resized_map(anomaly_map, size).clip(0, 1) * 255).round().astype(np.uint8))
    picture.putpalette(_palette())
    return picture


def resized_map(anomaly_map: Tensor, size: tuple[int, int] | None) -> np.ndarray:
    """A map [s, s] between its values at size (width, height), or as it is: float32 [h, w]."""
    values = anomaly_map.detach().float().cpu().numpy()
    if size is None or size == values.shape[::-1]:
        return values
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def heat_overlay(image: Tensor, anomaly_map: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """Lay an anomaly map [s, s] in [0, 1] over its uint8 image [3, s, s]; size is (width, height) in pixels.

    Returns an RGB image: the photograph in grey, so that all colour is the map's, and the map as opaque as it is high.
    """
    colours, grey = heat_map(anomaly_map, size), _photograph(image, size).convert("L").convert("RGB")
    return Image.composite(colours.convert("RGB"), grey, Image.fromarray(np.asarray(colours)))


def write_map(
    out: Path, number: int, path: Path, anomaly_map: Tensor, size: tuple[int, int], numbers: str | None = None
) -> str:
    """Write the heat map of image `path`, whose size is (width, height); returns its name, seen from the folder out.

    With numbers "npy" or "tiff", the map's values at that size lie beside it, float32 in [0, 1], under the same stem.
    """
    (out / "maps").mkdir(parents=True, exist_ok=True)
    file = f"maps/{number:04d}-{re.sub('[^A-Za-z0-9_-]+', '_', path.stem)[:80]}.png"
    write_atomically(out / file, _encoded(heat_map(anomaly_map, _fit(size, MAP_SIDE)), "PNG"))
    if numbers:
        values, content = Image.fromarray(resized_map(anomaly_map, size)), io.BytesIO()
        if numbers == "npy":
            np.save(content, np.asarray(values))
        else:
            values.save(content, "TIFF")
        write_atomically((out / file).with_suffix(f".{numbers}"), content.getvalue())
    return file


def row(
    path: Path, score: float, p_value: float | str, threshold: float, anomaly_map: Tensor, file: str
) -> tuple[Any, ...]:
    """An image's line of scores.csv, as HEAD names its cells; an empty p-value is not known."""
    verdict = "yes" if score > threshold else "no"
    return cell(path), score, p_value, verdict, threshold, anomaly_map.mean().item(), anomaly_map.max().item(), file


def shrunk(sizes: Sequence[tuple[int, int]], side: int) -> str:
    """A word of warning where images of these (width, height) lose much at a side of so many pixels; else nothing."""
    longest = max(map(max, sizes))
    if longest <= MOST_SHRUNK * side:
        return ""
    least = math.ceil(SEEN * longest / side)
    return (
        f"Sides of {longest} pixels are shrunk to {side}: a defect smaller than {least} pixels of your photograph can "
        "be lost; train at a larger --size or use --tile"
    )


def table(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)  # a name may hold what some take for a separator
    return text.getvalue()


class Axis(NamedTuple):
    """The one axis of all scores, and the threshold on it."""

    low: float
    high: float
    threshold: float

    def at(self, value: float) -> float:
        """Where a score stands, in percent of the drawing."""
        return 1 + 98 * (value - self.low) / ((self.high - self.low) or 1)

    def verdict(self, score: float) -> str:
        return "flagged" if score > self.threshold else "passed"


def card(
    path: Path, image: Tensor, anomaly_map: Tensor, size: tuple[int, int], score: float, peak: float, rarity: str = ""
) -> dict[str, Any]:
    """An image's place in the page: the photograph, its map over it, its score and the map's highest value, `peak`.

    `rarity` is a sentence that says how many good photographs look as odd.
    """
    size = _fit(size, THUMBNAIL_SIDE)
    return {
        "path": _plain(path),
        "name": _plain(Path(*path.parts[-2:])),
        "image": _uri(_photograph(image, size), "JPEG"),
        "overlay": _uri(heat_overlay(image, anomaly_map, size), "JPEG"),
        "size": size,
        "score": score,
        "peak": peak,
        "rarity": rarity,
    }


def write_page(
    out: Path,
    cards: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    threshold: float,
    title: str,
    notes: Mapping[str, str],
) -> Path:
    """Write report.html: every score on one axis, and cards, the worst first, of all or some; returns its path."""
    import jinja2  # here, since only this needs it

    parts = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".css", ".js"))
    page, style, script = parts
    grey, ramp = torch.full((3, 16, 256), 128, dtype=torch.uint8), torch.linspace(0, 1, 256).expand(16, 256)
    template = jinja2.Template(page, autoescape=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    page = template.render(
        title=_plain(title),
        notes={_plain(key): _plain(value) for key, value in notes.items()},
        scores=scores,
        axis=Axis(min(*scores, threshold), max(*scores, threshold), threshold),
        cards=cards,
        legend=_uri(heat_overlay(grey, ramp), "PNG"),
        style=style,
        script=script,
        sha256=_sha256,
    )
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Shrink (width, height), keeping the aspect, until neither side is longer than allowed."""
    scale = min(1, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _photograph(image: Tensor, size: tuple[int, int] | None) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    return picture.resize(size, Image.Resampling.BICUBIC) if size else picture


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85, optimize=True)
    return buffer.getvalue()


def _uri(picture: Image.Image, kind: str) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(_encoded(picture, kind)).decode()}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain(value: object) -> str:
    """What stands for bytes that are no UTF-8 in a file's name is not UTF-8 either: spell it out, as \\udcff.

    A name that holds such text already has its backslashes doubled, so that no two names are spelled alike.
    """
    text = str(value)
    if re.search(r"[\ud800-\udfff]|\\udc", text):
        text = text.replace("\\", "\\\\")
    return text.encode(errors="backslashreplace").decode()


def cell(path: Path) -> str:
    """The same file by a name that no spreadsheet takes for a formula, whatever it makes of blanks and wide signs."""
    return f"./{_plain(path)}" if re.match(r"[\s\0]*[=+\-@|%＝＋－＠]|[\s\0]", str(path)) else _plain(path)
