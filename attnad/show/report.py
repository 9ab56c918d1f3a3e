"""The report on scored images: a table, a heat map of each image, and one page that stands alone.

Colours have one scale everywhere, from 0 (normal) to 1 (anomalous); nothing is stretched per image or per test set.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnad.checkpoint import write_atomically

MAP_SIDE, THUMBNAIL_SIDE = 1024, 320  # longest sides in pixels: of the files in maps/, of the pictures in the page


@cache
def _palette() -> bytes:
    import matplotlib  # here, since it writes a cache into the user's home as it loads

    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes()


def heat_map(anomaly_map: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """Colour an anomaly map [s, s] in [0, 1], resized to size (width, height) in pixels where one is given.

    Returns a palette image whose indices are round(255 * value): the PNG keeps the values behind the colours.
    """
    values = Image.fromarray(anomaly_map.detach().float().cpu().numpy())
    values = values.resize(size, Image.Resampling.BILINEAR) if size else values
    picture = Image.fromarray((np.asarray(values).clip(0, 1) * 255).round().astype(np.uint8))
    picture.putpalette(_palette())
    return picture


def overlay(image: Tensor, anomaly_map: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """Lay an anomaly map [s, s] in [0, 1] over its uint8 image [3, s, s]; size is (width, height) in pixels.

    Returns an RGB image: the photograph in grey, so that all colour is the map's, and the map as opaque as it is high.
    """
    colours, grey = heat_map(anomaly_map, size), _photograph(image, size).convert("L").convert("RGB")
    return Image.composite(colours.convert("RGB"), grey, Image.fromarray(np.asarray(colours)))


def write_report(
    out: Path,
    *,
    paths: Sequence[Path],
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    maps: Tensor,
    scores: Sequence[float],
    threshold: float,
    title: str,
    notes: Mapping[str, str],
) -> Path:
    """Write `maps/*.png`, `scores.csv` and `report.html` on n images into the folder out, the worst image first.

    images is uint8 [n, 3, s, s], sizes their original (width, height) in pixels, maps float [n, s, s] in [0, 1], scores
    any finite numbers. Higher = more anomalous in both, and an image is flagged when its score > threshold. notes are
    facts for the page's head. Each file is written whole or not at all, the page last; its path is returned.
    Raises ValueError, naming the file, where there is no image, lengths differ, or a value is out of its range.
    """
    scores, threshold = [float(score) for score in scores], float(threshold)
    _check(paths, images, sizes, maps, scores, threshold)
    (out / "maps").mkdir(parents=True, exist_ok=True)
    low, high = min(*scores, threshold), max(*scores, threshold)
    x0, *positions = (1 + 98 * (value - low) / ((high - low) or 1) for value in (threshold, *scores))  # percent of axis

    rows, cards, ticks = [], [], []
    for i in sorted(range(len(paths)), key=lambda i: -scores[i]):
        path, score, x = paths[i], scores[i], positions[i]
        mean, peak = maps[i].mean().item(), maps[i].max().item()
        verdict = "flagged" if score > threshold else "passed"
        file = f"maps/{i + 1:04d}-{re.sub('[^A-Za-z0-9_-]+', '_', path.stem)[:80]}.png"
        write_atomically(out / file, _encoded(heat_map(maps[i], _fit(sizes[i], MAP_SIDE)), "PNG"))
        rows.append((_cell(path), score, "yes" if score > threshold else "no", threshold, mean, peak, file))
        ticks.append(f'<line class="{verdict}" x1="{x:.2f}%" x2="{x:.2f}%" y1="24" y2="44"/>')
        width, height = size = _fit(sizes[i], THUMBNAIL_SIDE)
        card = {
            "verdict": verdict,
            "icon": _ICONS[verdict],
            "path": _text(path),
            "name": _text(Path(*path.parts[-2:])),
            "image": _uri(_photograph(images[i], size), "JPEG"),
            "overlay": _uri(overlay(images[i], maps[i], size), "JPEG"),
            "size": f'width="{width}" height="{height}"',
            "score": f"{score:.4g}",
            "distance": f"{score - threshold:+.3g} from the threshold",
            "peak": f"map maximum {peak:.2f}",
            "bar": f'x="{min(x, x0):.2f}%" width="{abs(x - x0):.2f}%"',
            "x": f"{x:.2f}%",
            "x0": f"{x0:.2f}%",
        }
        cards.append(_CARD.substitute(card))
    table = io.StringIO()
    csv.writer(table).writerows([("file", "score", "anomalous", "threshold", "map_mean", "map_max", "map"), *rows])
    write_atomically(out / "scores.csv", table.getvalue())

    flagged = sum(score > threshold for score in scores)
    grey, ramp = torch.full((3, 16, 256), 128, dtype=torch.uint8), torch.linspace(0, 1, 256).expand(16, 256)
    page = {
        "title": _text(title),
        "style": _STYLE,
        "script": _SCRIPT,
        "style_hash": _hash(_STYLE),
        "script_hash": _hash(_SCRIPT),
        "n": len(scores),
        "flagged": flagged,
        "passed": len(scores) - flagged,
        "threshold": f"{threshold:.4g}",
        "notes": "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in notes.items()),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "x0": f"{x0:.2f}%",
        "anchor": "start" if x0 < 50 else "end",
        "ticks": "".join(ticks),
        "legend": _uri(overlay(grey, ramp), "PNG"),
        "cards": "".join(cards),
    }
    write_atomically(out / "report.html", _PAGE.substitute(page))
    return out / "report.html"


def _check(
    paths: Sequence[Path], images: Tensor, sizes: Sequence, maps: Tensor, scores: Sequence[float], threshold: float
) -> None:
    if not paths:
        raise ValueError("there is no image to report on; name at least one")
    if not len(paths) == len(images) == len(sizes) == len(maps) == len(scores):
        lengths = ", ".join(str(len(each)) for each in (paths, images, sizes, maps, scores))
        raise ValueError(f"paths, images, sizes, maps and scores have lengths {lengths}; give one of each per image")
    if not math.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}; give a finite number")
    for path, score, anomaly_map in zip(paths, scores, maps, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"{_plain(path)}: its score is {score}, no finite number; train again")
        if not ((anomaly_map >= 0) & (anomaly_map <= 1)).all():
            raise ValueError(f"{_plain(path)}: its map has values outside [0, 1] or NaN; give 1 - attention")


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


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain(value: object) -> str:
    """What stands for bytes that are no UTF-8 in a file's name is not UTF-8 either: spell it out, as \\udcff."""
    return str(value).encode(errors="backslashreplace").decode()


def _text(value: object) -> str:
    return html.escape(_plain(value))


def _cell(path: Path) -> str:
    """The same file by a name that no spreadsheet takes for a formula."""
    return f"./{_plain(path)}" if str(path)[0] in "=+-@\t\r" else _plain(path)


_ICONS = {  # a triangle with an exclamation mark, a disc with a tick
    "flagged": "M8 .8 15.8 15H.2zM7.1 5.6l.3 4.8h1.2l.3-4.8zM7.1 11.6v1.7h1.8v-1.7z",
    "passed": "M8 .5a7.5 7.5 0 1 0 0 15 7.5 7.5 0 1 0 0-15zM7 11.6 3.6 8.3l1.2-1.2L7 9.2l4.3-4.4 1.2 1.2z",
}

_STYLE = """
:root { color-scheme: light; --page: #f4f5f7; --card: #fff; --ink: #1b1f24; --quiet: #5b6470; --line: #dfe3e8;
  --flagged: #b34700; --passed: #0b63a5; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --page: #111418; --card: #1b2027;
  --ink: #e8ebef; --quiet: #a0a9b4; --line: #313842; --flagged: #ff9d57; --passed: #6cb6ff; } }
* { box-sizing: border-box; margin: 0; }
[hidden] { display: none !important; }
body { margin: auto; padding: 2rem clamp(1rem, 3vw, 2.5rem) 3rem; max-width: 90rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; }
dt, .quiet { color: var(--quiet); font-size: .85rem; }
.flagged { color: var(--flagged); }
.passed { color: var(--passed); }
.head { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.25rem 3rem; }
.lead { margin: .5rem 0 1.5rem; font-size: 1.1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem 1.5rem; }
svg { display: block; fill: currentColor; }
svg.axis { width: 100%; height: 4.2rem; font-size: .8rem; }
.axis line { stroke: currentColor; stroke-width: 2; stroke-opacity: .6; }
svg .threshold { stroke: var(--ink); stroke-width: 2; stroke-opacity: 1; }
.tools { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .6rem 2rem; align-items: center;
  justify-content: space-between; margin: 1.25rem 0 1rem; padding: .75rem 0; background: var(--page);
  border-bottom: 1px solid var(--line); }
.filter, .legend { display: flex; gap: .5rem; align-items: center; white-space: nowrap; }
.filter { flex-wrap: wrap; }
.legend { max-width: 100%; }
.legend img { flex: 0 1 10rem; min-width: 0; height: .9rem; border-radius: .2rem; }
button { padding: .3rem .9rem; border: 1px solid var(--line); border-radius: 2rem; background: var(--card);
  color: inherit; font: inherit; cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--page); }
button:focus-visible { outline: 3px solid var(--passed); outline-offset: 2px; }
.cards { padding: 0; list-style: none; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.cards > li { padding: .9rem; border: 1px solid var(--line); border-radius: .75rem; background: var(--card);
  break-inside: avoid; }
[data-show=flagged] > .passed, [data-show=passed] > .flagged { display: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; align-items: center; }
.pair img { display: block; width: 100%; height: auto; max-height: 20rem; object-fit: contain; border-radius: .4rem;
  outline: 1px solid var(--line); outline-offset: -1px; }
.verdict { display: flex; gap: .5rem; align-items: center; margin: .75rem 0 .35rem; font-weight: 650;
  text-transform: capitalize; }
.verdict svg { width: 1.15rem; height: 1.15rem; fill-rule: evenodd; }
.score { margin-left: auto; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.score, h2 { color: var(--ink); }
.bar { width: 100%; height: 1rem; overflow: visible; }
.track { fill: var(--line); }
h2 { margin: .5rem 0 .25rem; font: 600 .9rem/1.4 ui-monospace, monospace; }
@media print { :root { --page: #fff; } body { padding: 0; font-size: .8rem; print-color-adjust: exact; }
  .tools { position: static; } .filter { display: none; } }
"""

_SCRIPT = """
const filter = document.querySelector(".filter"), cards = document.querySelector(".cards");
filter.hidden = false;
filter.addEventListener("click", ({ target }) => {
  if (!target.value) return;
  cards.dataset.show = target.value;
  for (const button of filter.children) button.setAttribute("aria-pressed", button === target);
});
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'sha256-$style_hash';
  script-src 'sha256-$script_hash'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header>
<h1 dir="auto">$title</h1>
<p class="lead"><strong>Images flagged: $flagged of $n</strong> · threshold $threshold</p>
<div class="head">
<dl>$notes</dl>
<figure class="quiet">
<svg class="axis" role="img" aria-label="All scores on one axis from $low to $high, with the threshold $threshold">
<text x="$x0" y="12" text-anchor="$anchor">threshold</text>$ticks
<line class="threshold" x1="$x0" x2="$x0" y1="18" y2="50"/>
<text x="1%" y="62">$low</text><text x="99%" y="62" text-anchor="end">$high</text></svg>
<figcaption>Each line is an image's score. Right of the threshold the image is flagged.</figcaption>
</figure>
</div>
</header>
<main>
<div class="tools">
<div class="filter" role="group" aria-label="Images to show" hidden>
<button type="button" value="all" aria-pressed="true">All $n</button>
<button type="button" value="flagged" aria-pressed="false">Flagged $flagged</button>
<button type="button" value="passed" aria-pressed="false">Passed $passed</button>
</div>
<div class="legend quiet"><span>Map: normal 0</span>
<img src="$legend" width="256" height="16" alt="colours of the maps: clear, then purple, orange and pale yellow">
<span>1 anomalous</span></div>
</div>
<ol class="cards">$cards
</ol>
</main>
<script>$script</script>
</body>
</html>
""")

_CARD = Template("""
<li class="$verdict">
<div class="pair"><img src="$image" $size alt="Image $name">
<img src="$overlay" $size alt="Anomaly map over $name, $peak"></div>
<p class="verdict"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="$icon"/></svg>$verdict
<span class="score">$score</span></p>
<svg class="bar" aria-hidden="true"><rect class="track" y="5" width="100%" height="6" rx="3"/>
<rect $bar y="5" height="6"/><circle cx="$x" cy="8" r="5"/>
<line class="threshold" x1="$x0" x2="$x0" y1="0" y2="16"/></svg>
<h2 title="$path"><bdi>$name</bdi></h2>
<p class="quiet">$distance · $peak</p>
</li>""")
