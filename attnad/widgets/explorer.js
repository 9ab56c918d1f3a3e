// AttentionExplorer: see explorer.py for what the traits are.

/** For each image, how many of its pixels are defect and how many normal at each byte of the map. */
function histograms(maps, masks, known, pixels) {
  return known.map((isKnown, n) => {
    const counts = [new Uint32Array(256), new Uint32Array(256)];
    for (let i = n * pixels; i < (n + 1) * pixels; i++) counts[isKnown ? (masks[i >> 3] >> (i & 7)) & 1 : 0][maps[i]]++;
    return counts;
  });
}

function render({ model, el }) {
  const { n, channels, height, width, known, scores, names, steps } = model.get("_facts");
  const [images, maps, masks] = ["_images", "_maps", "_masks"].map((t) => bytes(model.get(t)));
  const pixels = width * height;
  const moments = steps.map((_, k) => nth(maps, k, n * pixels));
  const tallies = steps.map(() => null); // each moment's histograms, once they are asked for
  const histogram = (k) => (tallies[k] ??= histograms(moments[k], masks, known, pixels));
  const photo = (i) => nth(images, i, pixels * channels);
  const map = (i) => nth(moments[model.get("step")], i, pixels);
  const flagged = (value) => value > 255 * model.get("threshold");
  const defect = (i, pixel) => (masks[(i * pixels + pixel) >> 3] >> ((i * pixels + pixel) & 7)) & 1;
  const set = (values) => save(model, values);

  // --- the chosen image, large -----------------------------------------------------------------------------------
  const canvas = (className) => element("canvas", { class: className, width, height });
  const lines = () => {
    const paths = ["halo found", "found", "halo truth", "truth"].map((kind) => shape("path", { class: kind }));
    return layer(width, height, ...paths, shape("path", { class: "cross" }));
  };
  const panes = [
    { photo: canvas("photo"), map: canvas("map"), lines: lines() }, // overlay and swipe; alone it is the photograph
    { map: canvas("map"), lines: lines() },
  ];
  const divider = element("div", { class: "divider", "aria-hidden": "true" });
  const figures = [
    figure(width, height, [panes[0].photo, panes[0].map, panes[0].lines, divider]),
    figure(width, height, [panes[1].map, panes[1].lines], "map"),
  ];
  const [frame, caption] = figures[0].children;
  const stage = element(
    "div",
    { class: "stage", tabindex: 0, role: "group", "aria-label": "Image and map: arrow keys move a cross that reads the map" },
    ...figures,
  );
  const reading = element("p", { class: "reading" });
  let cross = null; // pixel whose value is read
  let swipe = 0.5;

  const read = (x, y) => {
    cross = x === null ? null : [clamp(x, 0, width - 1), clamp(y, 0, height - 1)];
    draw();
  };
  let dragging = false;
  const moved = (event) => {
    const [x, y] = pointed(event, event.target.closest(".frame") ?? frame);
    if (dragging) {
      swipe = clamp(x, 0, 1);
      setSwipe(swipe);
    }
    read(Math.floor(x * width), Math.floor(y * height));
  };
  stage.addEventListener("pointerdown", (event) => {
    dragging = model.get("view") === "swipe";
    if (dragging) event.target.setPointerCapture(event.pointerId);
    moved(event);
  });
  stage.addEventListener("pointermove", (event) => (dragging || event.target.closest(".frame")) && moved(event));
  stage.addEventListener("pointerup", () => (dragging = false));
  stage.addEventListener("pointercancel", () => (dragging = false));
  stage.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && !dragging && read(null));
  stage.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (event.key === "Escape") read(null);
    if (!step) return;
    const [x, y] = cross ?? [width >> 1, height >> 1];
    const far = event.shiftKey ? 8 : 1;
    read(x + far * step[0], y + far * step[1]);
  });

  // --- controls --------------------------------------------------------------------------------------------------
  const [views, showView] = choices(
    "View",
    [["overlay", "Overlay"], ["side by side", "Side by side"], ["swipe", "Swipe"]],
    (view) => set({ view }),
  );
  const two = (value) => value.toFixed(2);
  const [threshold, showThreshold, thresholdInput] = slider("Threshold", 0, 1, 0.005, (v) => v.toFixed(3), (threshold) =>
    set({ threshold }),
  );
  threshold.classList.add("scale");
  const [moment, showMoment] = slider("Maps of", 0, steps.length - 1, 1, (k) => steps[k], (step) => set({ step }));
  moment.classList.add("wordy");
  moment.hidden = steps.length < 2;
  const [opacity, showOpacity] = slider("Opacity", 0, 1, 0.01, two, (opacity) => set({ opacity }));
  const [swiping, setSwipe] = slider("Swipe", 0, 1, 0.01, two, (value) => {
    swipe = value;
    draw();
  });
  setSwipe(swipe);
  const [colourMap, showColourMap, palette] = colourPicker(model);
  const ends = element("div", { class: "ends", "aria-hidden": "true" }, element("span", {}, "normal"));
  ends.append(element("span", {}, "anomalous"));

  // --- numbers ---------------------------------------------------------------------------------------------------
  const title = element("h3", {});
  const about = element("p", { class: "about" });
  const cells = [0, 1].map(() => [0, 1, 2].map(() => element("td", {})));
  const withMask = known.filter(Boolean).length;
  const table = tableOf(
    "Precision, recall and false positives at the threshold",
    ["", "precision", "recall", "false positives"],
    [[["this image"], ...cells[0]], [[`all ${withMask} with a mask`], ...cells[1]]],
  );
  const meaning = element(
    "p",
    { class: "quiet" },
    "Precision: share of the flagged pixels that are defect. Recall: share of the defect that is flagged. " +
      "False positives: share of the normal pixels that are flagged.",
  );
  const keys = element(
    "p",
    { class: "key" },
    element("span", {}, element("i", { class: "swatch found" }), "flagged: above the threshold"),
    ...(known.some(Boolean) ? [element("span", {}, element("i", { class: "swatch truth" }), "true mask")] : []),
  );
  const [spoken, say] = announcer();

  const tally = (chosen) => {
    const counts = histogram(model.get("step"));
    let [found, hit, defects, normals] = [0, 0, 0, 0];
    for (const i of chosen)
      for (let value = 0; value < 256; value++) {
        const [normal, bad] = [counts[i][0][value], counts[i][1][value]];
        defects += bad;
        normals += normal;
        if (flagged(value)) (found += normal + bad), (hit += bad);
      }
    return [percent(hit, found), percent(hit, defects), percent(found - hit, normals), percent(found, pixels)];
  };

  // --- gallery ---------------------------------------------------------------------------------------------------
  const thumbs = names.map((name, i) =>
    element(
      "div",
      { role: "option", id: unique(), "aria-label": `${name}, score ${scores[i].toPrecision(3)}`, title: name, onclick: () => set({ index: i }) },
      paintPixels(canvas(""), photo(i), channels),
      element("span", {}, scores[i].toPrecision(3)),
    ),
  );
  const gallery = element("div", { class: "gallery", role: "listbox", tabindex: 0, "aria-label": "Images" });
  const [sorting, showSort] = picker("Sorted by", [["score", "score, highest first"], ["name", "name"]], (sort) => set({ sort }));
  let order = [];
  const arrange = () => {
    const byName = (a, b) => names[a].localeCompare(names[b], undefined, { numeric: true });
    const byScore = (a, b) => scores[b] - scores[a];
    const [first, then] = model.get("sort") === "score" ? [byScore, byName] : [byName, byScore];
    order = thumbs.map((_, i) => i).sort((a, b) => first(a, b) || then(a, b) || a - b);
    gallery.replaceChildren(...order.map((i) => thumbs[i]));
    showSort(model.get("sort"));
    reveal();
  };
  const reveal = () => {
    const thumb = thumbs[model.get("index")];
    const low = thumb.offsetTop;
    if (low < gallery.scrollTop || low + thumb.offsetHeight > gallery.scrollTop + gallery.clientHeight)
      gallery.scrollTop = low - 8; // not scrollIntoView, which moves the page too
  };
  gallery.addEventListener("keydown", (event) => {
    const at = order.indexOf(model.get("index"));
    const row = order.filter((i) => thumbs[i].offsetTop === thumbs[order[0]].offsetTop).length;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - row, ArrowDown: at + row, Home: 0, End: n - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to < n) set({ index: order[to] });
  });

  // --- drawing ---------------------------------------------------------------------------------------------------
  const show = () => {
    const i = model.get("index");
    const view = model.get("view");
    const values = map(i);
    paintPixels(panes[0].photo, photo(i), channels);
    for (const pane of panes) paintMap(pane.map, values, palette());
    stage.dataset.view = view;
    panes[0].map.hidden = view === "side by side";
    panes[0].map.style.opacity = view === "swipe" ? 1 : model.get("opacity");
    panes[0].map.style.clipPath = view === "swipe" ? `inset(0 0 0 ${100 * swipe}%)` : "none";
    caption.textContent = { overlay: "image under its map", "side by side": "image", swipe: "image | map" }[view];
    divider.style.left = `${100 * swipe}%`;
    const found = outline((p) => flagged(values[p]), width, height);
    const truth = known[i] ? outline((p) => defect(i, p), width, height) : "";
    for (const { lines: drawn } of panes) {
      const [haloFound, edgeFound, haloTruth, edgeTruth, mark] = drawn.children;
      for (const path of [haloFound, edgeFound]) path.setAttribute("d", found);
      for (const path of [haloTruth, edgeTruth]) path.setAttribute("d", truth);
      mark.setAttribute("d", cross ? `M${cross[0] + 0.5} 0V${height}M0 ${cross[1] + 0.5}H${width}` : "");
    }

    showView(view);
    showThreshold(model.get("threshold"));
    showMoment(model.get("step"));
    showOpacity(model.get("opacity"));
    showColourMap();
    opacity.hidden = view !== "overlay";
    swiping.hidden = view !== "swipe";
    thresholdInput.style.setProperty("--scale", gradient(palette()));

    const here = tally([i]);
    const all = tally(known.flatMap((isKnown, j) => (isKnown ? [j] : [])));
    cells[0].forEach((cell, c) => (cell.textContent = known[i] ? here[c] : "–"));
    cells[1].forEach((cell, c) => (cell.textContent = all[c]));
    table.hidden = meaning.hidden = !withMask;
    title.textContent = names[i];
    const place = [...scores].filter((score) => score > scores[i]).length + 1;
    about.textContent = `score ${scores[i].toPrecision(3)}, number ${place} of ${n}; ${here[3]} of its pixels are flagged`;
    reading.textContent = "Point at the image to read its map.";
    if (cross) {
      const value = values[cross[1] * width + cross[0]];
      reading.textContent = `map ${(value / 255).toFixed(2)} at column ${cross[0]}, row ${cross[1]}: ${flagged(value) ? "flagged" : "not flagged"}`;
    }
    thumbs.forEach((thumb, j) => thumb.setAttribute("aria-selected", j === i));
    gallery.setAttribute("aria-activedescendant", thumbs[i].id);
    const masked = known[i] ? ` Precision ${here[0]}, recall ${here[1]}, false positives ${here[2]}.` : "";
    const when = steps.length > 1 ? `, ${steps[model.get("step")]}` : "";
    say(cross ? reading.textContent : `${names[i]}${when}, threshold ${two(model.get("threshold"))}: ${here[3]} flagged.${masked}`);
  };
  const draw = once(show);

  el.replaceChildren(
    root(
      "Explorer of attention maps",
      element("header", { class: "bar" }, element("div", {}, title, about), views),
      element(
        "div",
        { class: "explorer" },
        element("div", {}, stage, reading),
        element(
          "div",
          { class: "panel" },
          moment,
          element("div", { class: "group" }, threshold, ends, keys),
          opacity,
          swiping,
          colourMap,
          table,
          meaning,
        ),
      ),
      element("div", { class: "bar" }, element("h4", {}, `${n} images`), sorting),
      gallery,
      spoken,
    ),
  );
  const closing = [
    listen(model, ["step", "threshold", "opacity", "view", "colormap", "index"], draw),
    listen(model, ["index"], reveal),
    listen(model, ["sort"], arrange),
  ];
  arrange();
  show();
  const placed = new ResizeObserver(reveal); // the page gives it a place later
  placed.observe(gallery);
  return () => {
    placed.disconnect();
    closing.forEach((close) => close());
  };
}

export default { render };
