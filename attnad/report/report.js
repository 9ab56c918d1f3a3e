// The threshold that the slider is at judges the images anew: the same score > threshold, of the same doubles.
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
