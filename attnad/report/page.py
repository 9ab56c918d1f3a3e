"""The report's page as text: icons, style, script, and templates of the page and of a card in it."""

from __future__ import annotations

import json
from string import Template

ICONS = {  # a triangle with an exclamation mark, a disc with a tick
    "flagged": "M8 .8 15.8 15H.2zM7.1 5.6l.3 4.8h1.2l.3-4.8zM7.1 11.6v1.7h1.8v-1.7z",
    "passed": "M8 .5a7.5 7.5 0 1 0 0 15 7.5 7.5 0 1 0 0-15zM7 11.6 3.6 8.3l1.2-1.2L7 9.2l4.3-4.4 1.2 1.2z",
}

STYLE = """
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
.filter, .legend, .slider { display: flex; gap: .5rem; align-items: center; white-space: nowrap; }
.filter, .slider { flex-wrap: wrap; }
.slider label { flex: 1 1 12rem; }
.slider input { display: block; width: 100%; margin: .4rem 0 0; }
.legend { max-width: 100%; }
.legend img { flex: 0 1 10rem; min-width: 0; height: .9rem; border-radius: .2rem; }
button { padding: .3rem .9rem; border: 1px solid var(--line); border-radius: 2rem; background: var(--card);
  color: inherit; font: inherit; cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--page); }
button:focus-visible, input:focus-visible { outline: 3px solid var(--passed); outline-offset: 2px; }
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
  .tools { position: static; } .filter, .slider { display: none; } }
"""

# The threshold that the slider is at judges the images anew: the same score > threshold, of the same doubles.
SCRIPT = (
    f"const icons = {json.dumps(ICONS)};"
    + """
const one = (name) => document.querySelector(name), ticks = document.querySelectorAll(".axis [data-score]");
const filter = one(".filter"), slider = one(".slider"), cards = one(".cards");
const [input, back] = slider.querySelectorAll("input, button");
const short = (value, digits) => String(Number(value.toPrecision(digits)));
filter.hidden = slider.hidden = false;
filter.addEventListener("click", ({ target }) => {
  if (!target.value) return;
  cards.dataset.show = target.value;
  for (const button of filter.children) button.setAttribute("aria-pressed", button === target);
});
function judge(threshold) {
  const low = Number(input.min), high = Number(input.max);
  const place = (value) => 1 + (98 * (value - low)) / (high - low || 1), x0 = place(threshold);
  const flagged = ({ dataset }) => Number(dataset.score) > threshold;
  for (const tick of ticks) tick.setAttribute("class", flagged(tick) ? "flagged" : "passed");
  for (const card of cards.children) {
    const word = flagged(card) ? "flagged" : "passed", score = Number(card.dataset.score);
    const over = score - threshold, x = place(score);
    card.className = word;
    card.querySelector(".word").textContent = word;
    card.querySelector(".verdict path").setAttribute("d", icons[word]);
    card.querySelector(".distance").textContent = `${over < 0 ? "" : "+"}${short(over, 3)} from the threshold`;
    const bar = card.querySelector(".track + rect");
    bar.setAttribute("x", `${Math.min(x, x0)}%`);
    bar.setAttribute("width", `${Math.abs(x - x0)}%`);
  }
  for (const line of document.querySelectorAll("svg .threshold")) {
    line.setAttribute("x1", `${x0}%`);
    line.setAttribute("x2", `${x0}%`);
  }
  const label = one(".axis text");
  label.setAttribute("x", `${x0}%`);
  label.setAttribute("text-anchor", x0 < 50 ? "start" : "end");
  one(".at").textContent = short(threshold, 4);
  one(".count").textContent = [...ticks].filter(flagged).length;
  const shown = [...cards.children].filter(flagged).length;
  filter.children[1].textContent = `Flagged ${shown}`;
  filter.children[2].textContent = `Passed ${cards.children.length - shown}`;
}
input.addEventListener("input", () => {
  const value = Number(input.value), high = Number(input.max);
  judge(high - value < 1e-9 * (high - input.min) ? high : value); // a browser rounds, and the end flags nothing
});
back.addEventListener("click", () => {
  input.value = input.defaultValue;
  judge(Number(input.defaultValue));
});
"""
)

PAGE = Template("""<!DOCTYPE html>
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
<p class="lead" aria-live="polite"><strong>Images flagged: <span class="count">$flagged</span> of $n</strong> ·
threshold <span class="at">$threshold</span></p>
<div class="head">
<dl>$notes</dl>
<figure class="quiet">
<svg class="axis" role="img" aria-label="All scores on one axis from $low to $high, with the threshold $threshold">
<text x="$x0" y="12" text-anchor="$anchor">threshold</text>$ticks
<line class="threshold" x1="$x0" x2="$x0" y1="18" y2="50"/>
<text x="1%" y="62">$low</text><text x="99%" y="62" text-anchor="end">$high</text></svg>
<figcaption>Each line is an image's score. Right of the threshold the image is flagged.</figcaption>
<div class="slider" hidden><label>Try another threshold
<input type="range" min="$lowest" max="$highest" step="any" value="$exactly"></label>
<button type="button">Back to $threshold</button></div>
</figure>
</div>
</header>
<main>
<div class="tools">
<div class="filter" role="group" aria-label="Images to show" hidden>
<button type="button" value="all" aria-pressed="true">All $shown</button>
<button type="button" value="flagged" aria-pressed="false">Flagged $shown_flagged</button>
<button type="button" value="passed" aria-pressed="false">Passed $shown_passed</button>
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

CARD = Template("""
<li class="$verdict" data-score="$exactly">
<div class="pair"><img src="$image" $size alt="Image $name">
<img src="$overlay" $size alt="Anomaly map over $name, $peak"></div>
<p class="verdict"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="$icon"/></svg><span class="word">$verdict</span>
<span class="score">$score</span></p>
<svg class="bar" aria-hidden="true"><rect class="track" y="5" width="100%" height="6" rx="3"/>
<rect $bar y="5" height="6"/><circle cx="$x" cy="8" r="5"/>
<line class="threshold" x1="$x0" x2="$x0" y1="0" y2="16"/></svg>
<h2 title="$path"><bdi>$name</bdi></h2>
<p class="quiet"><span class="distance">$distance</span> · $peak</p>
</li>""")
