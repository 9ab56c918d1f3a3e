// What the widgets share. Text from the data enters the page as text nodes only.

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const nth = (values, i, length) => values.subarray(i * length, (i + 1) * length);
const unique = () => `attnad-${Math.random().toString(36).slice(2)}`; // widgets on a page share its names and ids

/** Set traits of a model by name, and tell the kernel. */
function save(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

/** Call a function whenever one of these traits changes. Returns a function that stops it. */
function listen(model, names, changed) {
  const events = names.map((name) => `change:${name}`).join(" ");
  model.on(events, changed);
  return () => model.off(events, changed);
}

/** Where the pointer is on an element: shares of its width and of its height, in 0..1 inside it. */
function pointed(event, node) {
  const { left, top, width, height } = node.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / height];
}

/** The pixel [x, y] of a canvas that is nearest to the pointer. */
function pixelAt(event, canvas) {
  const sizes = [canvas.width, canvas.height];
  return pointed(event, canvas).map((share, i) => clamp(Math.floor(share * sizes[i]), 0, sizes[i] - 1));
}

/** Call a function with where the pointer is, in shares, while it is pressed, wherever it goes from an element. */
function onDrag(node, moved) {
  node.addEventListener("pointerdown", (event) => {
    node.setPointerCapture(event.pointerId);
    moved(...pointed(event, node));
  });
  node.addEventListener("pointermove", (event) => event.buttons && moved(...pointed(event, node)));
}

/** The step [x, y] that an arrow key means, and that the page then does not take; nothing for other keys. */
function arrow(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (step) event.preventDefault();
  return step;
}

/** An element: attributes by name (`onclick` and the like are listeners, true is an empty attribute), then children. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const button = (text, onclick, attributes = {}) => element("button", { type: "button", onclick, ...attributes }, text);

/** Drawings in pixel units, to lie over a picture. */
const layer = (width, height, ...drawn) =>
  shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...drawn);

/** Pictures and drawings on top of each other, with a caption below. */
function figure(width, height, layers, ...caption) {
  const frame = element("div", { class: "frame", style: `aspect-ratio: ${width} / ${height}` }, ...layers);
  return element("figure", {}, frame, element("figcaption", {}, ...caption));
}

/** A table: the heads of its columns, if any ("" for a corner), and rows, each of a list that is its head and of cells. */
function tableOf(caption, heads, rows) {
  const head = heads.map((text) => (text ? element("th", { scope: "col" }, text) : element("td")));
  const body = rows.map(([name, ...cells]) => element("tr", {}, element("th", { scope: "row" }, ...name), ...cells));
  const top = head.length ? [element("thead", {}, element("tr", {}, ...head))] : [];
  return element("table", {}, element("caption", { class: "unseen" }, caption), ...top, element("tbody", {}, ...body));
}

/** Pictures of normal images to choose from. Returns their row and a function that shows another choice. */
function thumbnails(pictures, onpick) {
  const buttons = pictures.map((picture, i) =>
    button(picture, () => onpick(i), { class: "thumb", "aria-label": `Normal image ${i + 1}` }),
  );
  const node = element("div", { class: "thumbs", role: "group", "aria-label": "Normal images" }, ...buttons);
  return [node, (chosen) => buttons.forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === chosen))];
}

/** Radio buttons that look like one row of buttons. Returns the group and a function that shows another choice. */
function choices(legend, options, onpick, className = "") {
  const group = unique();
  const inputs = options.map(([value]) =>
    element("input", { type: "radio", name: group, value, onchange: () => onpick(value) }),
  );
  const labels = options.map(([, text, title], i) =>
    element("label", title ? { title } : {}, inputs[i], element("span", {}, text)),
  );
  const node = element("fieldset", { class: `choices ${className}` }, element("legend", {}, legend), ...labels);
  return [node, (value) => inputs.forEach((input) => (input.checked = input.value === value))];
}

/** A slider from `low` to `high` with its value beside it. */
function slider(label, low, high, step, show, oninput) {
  const input = element("input", { type: "range", min: low, max: high, step });
  const value = element("output", {});
  const set = (number) => {
    input.value = number;
    value.textContent = show(number);
    input.setAttribute("aria-valuetext", show(number));
  };
  input.addEventListener("input", () => {
    set(Number(input.value));
    oninput(Number(input.value));
  });
  return [element("label", { class: "slider" }, element("span", {}, label), input, value), set, input];
}

function picker(label, options, onpick) {
  const select = element("select", { onchange: () => onpick(select.value) });
  select.append(...options.map(([value, text]) => element("option", { value }, text)));
  return [element("label", { class: "picker" }, element("span", {}, label), select), (value) => (select.value = value)];
}

/** The picker of a model's colour map, a function that shows its choice, and one that gives its palette. */
function colourPicker(model) {
  const [{ colormaps }, colours] = [model.get("_facts"), bytes(model.get("_palettes"))];
  const options = colormaps.map((name) => [name, name]);
  const [node, show] = picker("Colours", options, (colormap) => save(model, { colormap }));
  return [node, () => show(model.get("colormap")), () => nth(colours, colormaps.indexOf(model.get("colormap")), 768)];
}

/** Paint uint8 pixels, of one channel or three, on a canvas of their own size, which is returned. */
function paintPixels(canvas, pixels, channels) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let i = 0, n = canvas.width * canvas.height; i < n; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = pixels[channels === 3 ? 3 * i + c : i];
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Paint a map's bytes in the colours of a palette: 256 times R, G, B. */
function paintMap(canvas, values, palette) {
  const coloured = new Uint8Array(3 * values.length);
  for (let i = 0; i < values.length; i++) coloured.set(palette.subarray(3 * values[i], 3 * values[i] + 3), 3 * i);
  paintPixels(canvas, coloured, 3);
}

/** A palette as a CSS gradient, from 0 at the left to 1 at the right. */
function gradient(palette) {
  const stops = Array.from({ length: 17 }, (_, i) => 3 * Math.min(16 * i, 255));
  return `linear-gradient(to right, ${stops.map((at) => `rgb(${palette.slice(at, at + 3).join(" ")})`).join(", ")})`;
}

/** The line between pixels that are inside and pixels that are not, as an SVG path in pixel units. */
function outline(inside, width, height) {
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height && inside(y * width + x) ? 1 : 0);
  const path = [];
  for (let y = 0; y <= height; y++)
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && at(x, y - 1) !== at(x, y);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) path.push(`M${start} ${y}H${x}`), (start = -1);
    }
  for (let x = 0; x <= width; x++)
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && at(x - 1, y) !== at(x, y);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) path.push(`M${x} ${start}V${y}`), (start = -1);
    }
  return path.join("");
}

/** Call a function once in the next frame, however often it is asked for; or at once, before the first frame. */
function once(draw) {
  let asked = 0;
  return () => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(draw);
  };
}

/** A line that screen readers speak, at most once the reader has paused. */
function announcer() {
  const node = element("p", { class: "unseen", role: "status", "aria-live": "polite" });
  let waiting = 0;
  const say = (text) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => (node.textContent = text), 500);
  };
  return [node, say];
}

/** The widget's outermost element. Keys pressed inside it are not the notebook's shortcuts. */
function root(label, ...children) {
  const node = element("section", { class: "attnad", "aria-label": label });
  node.append(...children);
  // Jupyter looks from the focused element upwards for one that a shortcut is meant for, until it meets this attribute.
  // Some shortcuts are meant for whatever has the focus: so that element itself must have it.
  node.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
  node.addEventListener("keydown", (event) => event.stopPropagation());
  return node;
}
