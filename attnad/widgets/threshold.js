// ScoreThreshold: see threshold.py for what the traits are.

const [WIDE, BAND, BINS] = [640, 70, 40]; // of the drawing, in its own units; each group has a band

function render({ model, el }) {
  const { scores, groups, kinds, fixed, colours } = model.get("_facts");
  const [low, high] = [Math.min(...scores, fixed), Math.max(...scores, fixed)];
  const span = high - low || 1;
  const [first, step] = [low - 0.03 * span, span / 200]; // a little room, so that all can be flagged, or none
  const last = high + 0.03 * span;
  const x = (score) => ((score - first) / (last - first)) * WIDE;
  const digits = clamp(3 - Math.floor(Math.log10(span)), 0, 8);
  const text = (score) => score.toFixed(Math.min(digits, 4));
  const set = (threshold) => save(model, { threshold });

  // --- histograms ------------------------------------------------------------------------------------------------
  const bins = kinds.map(() => new Array(BINS).fill(0));
  scores.forEach((score, i) => bins[groups[i]][Math.min(BINS - 1, Math.floor(((score - low) / span) * BINS))]++);
  const bars = bins.map((counts, kind) => {
    const [ground, tallest] = [BAND * (kind + 1), Math.max(...counts, 1)];
    const path = counts.map((count, b) => {
      const [from, to] = [x(low + (b * span) / BINS), x(low + ((b + 1) * span) / BINS)];
      return count ? `M${from} ${ground}v${(-0.9 * BAND * count) / tallest}H${to}V${ground}z` : "";
    });
    return shape("path", { class: `group${kind}`, d: path.join(""), fill: colours[kind], stroke: colours[kind] });
  });
  const tall = BAND * kinds.length;
  const ground = shape("path", { class: "ground", d: kinds.map((_, kind) => `M0 ${BAND * (kind + 1)}H${WIDE}`).join("") });
  const line = shape("path", { class: "limit" });
  const shade = shape("rect", { class: "shade", y: 0, height: tall });
  const marker = shape("path", { class: "fixed", d: `M${x(fixed)} 0V${tall}` });
  const drawing = shape("svg", { viewBox: `0 0 ${WIDE} ${tall}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  drawing.append(shade, ...bars, ground, marker, line);
  const plot = element("div", { class: "plot", style: `height: ${kinds.length * 72}px` }, drawing);
  kinds.forEach((kind, i) => plot.append(element("span", { style: `top: ${72 * i}px` }, kind)));
  onDrag(plot, (across) => set(clamp(first + across * (last - first), first, last)));

  // --- controls and numbers --------------------------------------------------------------------------------------
  const [threshold, showThreshold, input] = slider("Threshold", first, last, step, text, set);
  input.step = "any"; // a value that Python sets, or the pointer, need not be one of the slider's
  input.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!by) return;
    event.preventDefault();
    set(clamp(model.get("threshold") + by * step, first, last));
  });
  const back = button("Back to the held-out images' threshold", () => set(fixed));
  const totals = kinds.map((_, kind) => groups.filter((group) => group === kind).length);
  const cells = kinds.map(() => [0, 1].map(() => element("td", {})));
  const rows = kinds.map((kind, i) => {
    const name = [element("i", { class: "block", style: `background: ${colours[i]}` }), kind];
    return [name, element("td", { class: "wanted" }, i ? "flag" : "pass"), ...cells[i]];
  });
  const table = tableOf("Images flagged at the threshold", ["group", "should", "flagged", "share"], rows);
  const verdict = element("p", { class: "verdict" });
  const [spoken, say] = announcer();

  const show = () => {
    const limit = model.get("threshold");
    const flagged = kinds.map(() => 0);
    scores.forEach((score, i) => score > limit && flagged[groups[i]]++);
    line.setAttribute("d", `M${x(limit)} 0V${tall}`);
    shade.setAttribute("x", x(limit));
    shade.setAttribute("width", Math.max(0, WIDE - x(limit)));
    showThreshold(limit);
    kinds.forEach((_, kind) => {
      cells[kind][0].textContent = `${flagged[kind]} of ${totals[kind]}`;
      cells[kind][1].textContent = percent(flagged[kind], totals[kind]);
    });
    const sum = (values) => values.slice(1).reduce((a, b) => a + b, 0);
    const [found, alarms] = [sum(flagged) / sum(totals), flagged[0] / totals[0]];
    verdict.textContent =
      `Found ${percent(found, 1)} of the anomalies for ${percent(alarms, 1)} of false alarms; ` +
      `balanced accuracy ${((found + 1 - alarms) / 2).toFixed(3)}.`;
    say(verdict.textContent);
  };
  const draw = once(show);

  el.replaceChildren(
    root(
      "Threshold over the scores of images",
      element("header", { class: "bar" }, element("h3", {}, "Where to draw the line"), back),
      plot,
      element("p", { class: "ends" }, element("span", {}, "looks normal"), element("span", {}, "anomaly score"), element("span", {}, "looks anomalous")),
      threshold,
      table,
      verdict,
      element("p", { class: "quiet" }, "Each group has its own scale. Shaded: flagged. Dashed: the threshold from held-out normal images. Drag the line, or use the slider."),
      spoken,
    ),
  );
  show();
  return listen(model, ["threshold"], draw);
}

export default { render };
