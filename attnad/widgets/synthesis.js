// Synthesis: see synthesis.py for what the traits are. It computes what attnad/augmentations.py does, for one image.
// A pixel is [r, g, b] in 0..1; images are lists of pixels in reading order.

/** Where each pixel of perm(rotate(x)) comes from: patch i of the result is patch order[i] of the turned image. */
function sources(side, quarterTurns, order) {
  const grid = Math.sqrt(order.length);
  const patch = side / grid;
  return Array.from({ length: side * side }, (_, pixel) => {
    const [row, column] = [Math.floor(pixel / side), pixel % side];
    const from = order[grid * Math.floor(row / patch) + Math.floor(column / patch)];
    let [y, x] = [patch * Math.floor(from / grid) + (row % patch), patch * (from % grid) + (column % patch)];
    for (let i = 0; i < quarterTurns; i++) [y, x] = [x, side - 1 - y]; // in the image before this turn
    return side * y + x;
  });
}

const luma = ([r, g, b]) => 0.2989 * r + 0.587 * g + 0.114 * b; // ITU-R BT.601, with torchvision's rounding
const blend = (from, to, weight) => clamp(from + weight * (to - from), 0, 1);

/** Turn the hue of a pixel in HSV space, by the hexagon's formulas. */
function turnHue([r, g, b], turns) {
  const value = Math.max(r, g, b);
  const chroma = value - Math.min(r, g, b);
  if (!chroma) return [r, g, b]; // grey has no hue
  const sixths = value === r ? (g - b) / chroma : value === g ? 2 + (b - r) / chroma : 4 + (r - g) / chroma;
  return [5, 3, 1].map((n) => {
    const k = (n + sixths + 6 * turns + 12) % 6;
    return value - chroma * clamp(Math.min(k, 4 - k), 0, 1);
  });
}

function jitter(image, { brightness, contrast, saturation, hue }) {
  const bright = image.map((pixel) => pixel.map((v) => clamp(brightness * v, 0, 1)));
  const mean = bright.reduce((sum, pixel) => sum + luma(pixel), 0) / bright.length;
  return bright.map((pixel) => {
    const contrasted = pixel.map((v) => blend(mean, v, contrast));
    const grey = luma(contrasted);
    return turnHue(contrasted.map((v) => blend(grey, v, saturation)), hue);
  });
}

const uniform = (low, high) => low + (high - low) * Math.random();

/** A random order of n patches, never the identity if there is another one. */
function shuffled(n) {
  const keys = Array.from({ length: n }, Math.random);
  const order = keys.map((_, i) => i).sort((a, b) => keys[a] - keys[b]);
  return order.every((from, i) => from === i) ? order.map((i) => (i + n - 1) % n) : order;
}

/** A rectangle of log-uniform area and aspect, placed uniformly inside the image. */
function randomBox(side, { box_area, box_aspect }) {
  const area = Math.exp(uniform(...box_area.map(Math.log)));
  const aspect = Math.exp(uniform(-Math.log(box_aspect), Math.log(box_aspect)));
  const sides = [area * aspect, area / aspect].map((share) => clamp(Math.round(side * Math.sqrt(share)), 1, side));
  const [top, left] = sides.map((length) => Math.floor(uniform(0, side - length + 1)));
  return [top, left, top + sides[0], left + sides[1]];
}

function render({ model, el }) {
  const { n, channels, side, config } = model.get("_facts");
  const [images, palette] = [bytes(model.get("_images")), bytes(model.get("_palette"))];
  const names = ["quarter_turns", "order", "brightness", "contrast", "saturation", "hue", "filling", "box", "outline", "index"];
  const state = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  const set = (values) => save(model, values);
  const bytesOf = (i) => nth(images, i, side * side * channels);
  const photo = (i) => {
    const packed = bytesOf(i);
    return Array.from({ length: side * side }, (_, p) => [0, 1, 2].map((c) => packed[channels === 3 ? 3 * p + c : p] / 255));
  };

  // --- pictures --------------------------------------------------------------------------------------------------
  const canvas = (attributes = {}) => element("canvas", { width: side, height: side, ...attributes });
  const board = canvas({ tabindex: 0, role: "application", "aria-label": "x″: arrow keys move the rectangle, with shift they resize it" });
  const [first, second, target] = [canvas(), canvas(), canvas()];
  const edges = ["halo truth", "truth", "grips"].map((kind) => shape("path", { class: kind }));
  const step = (name, text, ...layers) => figure(side, side, layers, element("strong", {}, name), ...text);
  const scale = element("span", { class: "ramp", "aria-hidden": "true", style: `background: ${gradient(palette)}` });
  const reading = element("p", { class: "reading" });
  const [spoken, say] = announcer();

  // --- controls --------------------------------------------------------------------------------------------------
  const [turning, showTurns] = choices("Rotate", ["0", "1", "2", "3"].map((k) => [k, `${90 * k}°`]), (k) => set({ quarter_turns: Number(k) }));
  const grids = [["1", "none"], ...config.grids.map((g) => [String(g), `${g} × ${g}`])];
  const [cutting, showGrid] = choices("Perm", grids, (g) => set({ grid: Number(g), order: shuffled(g * g) }));
  const shuffle = button("Shuffle", () => set({ order: shuffled(model.get("order").length) }));
  const sequence = element("p", { class: "quiet" });
  const signed = (v) => `${v > 0 ? "+" : ""}${v.toFixed(2)}`;
  const sliders = ["brightness", "contrast", "saturation", "hue"].map((name) => {
    const [middle, show] = name === "hue" ? [0, signed] : [1, (v) => v.toFixed(2)];
    const label = name[0].toUpperCase() + name.slice(1);
    const [node, showValue] = slider(label, middle - config[name], middle + config[name], 0.01, show, (v) => set({ [name]: v }));
    return { name, middle, node, showValue, draw: () => uniform(middle - config[name], middle + config[name]) };
  });
  const [filling, showFilling] = choices("Fill with", [["x'", "x′"], ["zeros", "zeros"]], (value) => set({ filling: value }));
  const outlined = element("input", { type: "checkbox", onchange: () => set({ outline: outlined.checked }) });
  const drawOne = () => {
    const grid = config.grids[Math.floor(uniform(0, config.grids.length))];
    const factors = Object.fromEntries(sliders.map(({ name, draw }) => [name, draw()]));
    const [quarter_turns, filling] = [1 + Math.floor(uniform(0, 3)), Math.random() < 0.5 ? "zeros" : "x'"];
    set({ quarter_turns, grid, order: shuffled(grid * grid), ...factors, filling, box: randomBox(side, config) });
  };
  const startAgain = () => {
    const factors = Object.fromEntries(sliders.map(({ name, middle }) => [name, middle]));
    set({ quarter_turns: 0, grid: 1, order: [0], ...factors });
  };
  const pictures = Array.from({ length: n }, (_, i) => paintPixels(canvas(), bytesOf(i), channels));
  const [thumbs, showThumb] = thumbnails(pictures, (index) => set({ index }));

  // --- the rectangle ---------------------------------------------------------------------------------------------
  let drag = null; // what a movement of the pointer to pixel [y, x] does to the rectangle
  const where = (event) => pixelAt(event, board).reverse();
  const moved = ([top, left, bottom, right], down, across) => {
    const [y, x] = [clamp(top + down, 0, side - bottom + top), clamp(left + across, 0, side - right + left)];
    return [y, x, y + bottom - top, x + right - left];
  };
  const between = ([a, b], [y, x]) => [Math.min(a, y), Math.min(b, x), Math.max(a, y) + 1, Math.max(b, x) + 1];
  board.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    board.setPointerCapture(event.pointerId);
    const box = model.get("box");
    const [top, left, bottom, right] = box;
    const [y, x] = where(event);
    const near = (12 / board.getBoundingClientRect().width) * side; // a finger's reach, in pixels of the image
    const corner = [[top, bottom - 1], [left, right - 1]].map((ends, i) => ends.findIndex((end) => Math.abs(end - [y, x][i]) <= near));
    const inside = y >= top && y < bottom && x >= left && x < right;
    const small = Math.min(bottom - top, right - left) < 3 * near; // hardly room to grasp it between its corners
    if (corner.every((end) => end >= 0) && !(small && inside))
      drag = (to) => between([corner[0] ? top : bottom - 1, corner[1] ? left : right - 1], to);
    else if (inside) drag = (to) => moved(box, to[0] - y, to[1] - x);
    else drag = (to) => between([y, x], to);
  });
  board.addEventListener("pointermove", (event) => drag && set({ box: drag(where(event)) }));
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (drag = null));
  board.addEventListener("keydown", (event) => {
    const by = arrow(event);
    if (!by) return;
    const [[x, y], [top, left, bottom, right]] = [by, model.get("box")];
    const resized = [top, left, clamp(bottom + y, top + 1, side), clamp(right + x, left + 1, side)];
    set({ box: event.shiftKey ? resized : moved(model.get("box"), y, x) });
  });

  // --- drawing ---------------------------------------------------------------------------------------------------
  const paint = (to, image) => paintPixels(to, image.flat().map((v) => Math.round(255 * v)), 3);
  const show = () => {
    const { quarter_turns, order, filling, box, outline, index, ...factors } = state();
    const [top, left, bottom, right] = box;
    const inside = (p) => p >= side * top && p < side * bottom && p % side >= left && p % side < right;
    const x = photo(index);
    const x1 = jitter(sources(side, quarter_turns, order).map((p) => x[p]), factors);
    const x2 = x.map((pixel, p) => (!inside(p) ? pixel : filling === "zeros" ? [0, 0, 0] : x1[p]));
    paint(first, x);
    paint(second, x1);
    paint(board, x2);
    paintMap(target, x.map((_, p) => (inside(p) ? 255 : 0)), palette);
    const d = `M${left} ${top}H${right}V${bottom}H${left}z`;
    const corners = [[left, top], [right, top], [left, bottom], [right, bottom]].map(([u, v]) => `M${u} ${v}h0`).join("");
    edges.forEach((path, i) => path.setAttribute("d", outline ? (i < 2 ? d : corners) : ""));

    const grid = Math.sqrt(order.length);
    showTurns(String(quarter_turns));
    showGrid(String(grid));
    showFilling(filling);
    for (const { name, showValue } of sliders) showValue(factors[name]);
    outlined.checked = outline;
    shuffle.disabled = grid === 1;
    sequence.textContent = `order = [${order.join(", ")}]`;
    sequence.hidden = grid === 1;
    showThumb(index);
    const area = (bottom - top) * (right - left);
    const change = x.flatMap((pixel, p) => pixel.map((v, c) => Math.abs(x2[p][c] - v))).reduce((sum, v) => sum + v) / (3 * area);
    reading.textContent = `The rectangle covers ${percent(area, side * side)} of the image. Inside it x″ differs from x by ${change.toFixed(2)} on average (1 = black to white); A″ is 0 there in any case.`;
    say(`Rotated by ${90 * quarter_turns} degrees, ${grid === 1 ? "not permuted" : `${grid} by ${grid} patches permuted`}, filled with ${filling}. ${reading.textContent}`);
  };
  const draw = once(show);

  const part = (title, ...controls) => element("div", { class: "part" }, element("h4", {}, title), ...controls);
  el.replaceChildren(
    root(
      "Make a synthetic anomaly",
      element("header", { class: "bar" }, element("h3", {}, "Make a synthetic anomaly"),
        element("div", { class: "buttons" }, button("Draw one", drawOne, { title: "all parameters at random, as in training" }), button("Start again", startAgain, { title: "x′ = x" }))),
      thumbs,
      element("div", { class: "steps" },
        step("x", [" normal image"], first),
        step("x′", [" rotated, permuted, jittered: A′ is 0 everywhere"], second),
        step("x″", [" x with a rectangle replaced: drag it"], board, layer(side, side, ...edges)),
        step("A″", [" target map: normal\u00a0=\u00a01\u00a0", scale, "\u00a00"], target)),
      reading,
      element("div", { class: "panel" },
        part("x′ = jitter(perm(rotate(x)))", turning, cutting, element("div", { class: "shuffle" }, shuffle, sequence), ...sliders.map(({ node }) => node)),
        part("x″: a rectangle of x, replaced", filling, element("label", { class: "picker" }, outlined, "Outline the rectangle"),
          element("p", { class: "quiet" }, "Drag inside the rectangle to move it, at a corner to resize it, elsewhere to draw another one. Or choose the picture x″ with the tab key: arrow keys move, shift and arrow keys resize."))),
      spoken,
    ),
  );
  show();
  return listen(model, names, draw);
}

export default { render };
