// PaintDefect: see paint.py. An answer is the map in bytes, the scores in the order shown, and the reconstruction, if any.

/**
 * The kernel as what answers: images go out as messages. It counts once it has said that it is there. All views of a model
 * hear all answers, so each knows its own by their ids. Returns a function that stops listening.
 */
function kernelBackend(model, onready) {
  let [waiting, id, count] = [null, "", 0];
  const view = unique();
  const hear = (content, buffers) => {
    if (content.kind === "kernel") onready(backend);
    if (!waiting || content.id !== id) return;
    const { resolve, reject } = waiting;
    waiting = null;
    if (content.kind === "error") reject(new Error(`The kernel could not answer. ${content.text}`));
    else resolve({ scores: content.scores, map: bytes(buffers[0]), reconstruction: buffers[1] && bytes(buffers[1]) });
  };
  const backend = {
    name: "the kernel",
    answer: (pixels) =>
      new Promise((resolve, reject) => {
        [waiting, id] = [{ resolve, reject }, `${view}-${(count += 1)}`];
        model.send({ kind: "image", id }, undefined, [pixels.slice().buffer]);
      }),
  };
  model.on("msg:custom", hear);
  model.send({ kind: "hello" });
  return () => model.off("msg:custom", hear);
}

/** The model in this page as what answers: an ONNX file beside the page, in onnxruntime-web. Errors say what to do. */
async function pageBackend({ file, sha256, takes_bytes, size, labels }) {
  if (!file) throw new Error("There is no kernel, and this page was saved without a model. Run the notebook to paint.");
  if (location.protocol === "file:")
    throw new Error("A page opened from a file cannot load a model. Serve its folder (python -m http.server) and open it from there.");
  const base = new URL(`${document.documentElement.dataset.content_root ?? "./"}_static/explore/`, document.baseURI);
  const response = await fetch(new URL(file, base)).catch(() => null);
  if (!response?.ok) throw new Error(`The model ${file} is not where this page looks for it, so nothing can answer.`);
  const content = await response.arrayBuffer();
  if (globalThis.crypto?.subtle) {
    // there over https and on this machine
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
    if ([...digest].map((b) => b.toString(16).padStart(2, "0")).join("") !== sha256)
      throw new Error(`The model ${file} is damaged, or not the one that this page was made with. Reload the page.`);
  }
  let ort, session;
  try {
    ort = await import(new URL("ort.wasm.bundle.min.mjs", base).href);
    ort.env.wasm.numThreads = 1; // more would need headers that static hosts do not send
    ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", base).href };
    session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`The model cannot run in this browser (${String(error?.message ?? error).split("\n")[0]}).`);
  }
  const byte = (value) => Math.round(255 * clamp(value, 0, 1));
  const area = size * size;
  return {
    name: "the model in this page",
    async answer(pixels) {
      const planes = takes_bytes ? new Uint8Array(3 * area) : new Float32Array(3 * area); // earlier files: in [0, 1]
      for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) planes[c * area + i] = pixels[3 * i + c] / (takes_bytes ? 1 : 255);
      const out = await session.run({ image: new ort.Tensor(takes_bytes ? "uint8" : "float32", planes, [1, 3, size, size]) });
      const red = out.reconstruction?.data;
      const reconstruction = red && new Uint8Array(3 * area);
      if (red) for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) reconstruction[3 * i + c] = byte(red[c * area + i]);
      const map = Uint8Array.from(out.attention.data, (value) => byte(1 - value));
      const scores = labels.map(([name]) => (out[`${name}_score`] ?? out[name]).data[0]); // "attention" alone is the map
      return { map, reconstruction, scores };
    },
  };
}

/** One score as a line: where it was on the clean image, where it is, and the threshold if it has one. */
function meter(label, threshold) {
  const value = element("strong", {});
  const change = element("span", { class: "quiet" });
  const marks = ["clean", "limit", "now"].map((kind) => element("i", { class: kind }));
  if (threshold === null) marks[1].hidden = true;
  const line = element("div", { class: "line", "aria-hidden": "true" }, ...marks);
  const node = element("div", { class: "meter" }, element("p", {}, `${label} `, value, " ", change), line);
  let range = null;
  const show = (score, clean) => {
    const points = [score, clean, threshold ?? clean + 0.05];
    if (!range) range = [Math.min(...points), Math.max(...points)];
    range = [Math.min(range[0], ...points), Math.max(range[1], ...points)];
    const place = (at) => `${5 + (90 * (at - range[0])) / (range[1] - range[0] || 1)}%`;
    [clean, threshold ?? clean, score].forEach((at, i) => (marks[i].style.left = place(at)));
    value.textContent = score.toFixed(3);
    const verdict = threshold === null ? "" : score > threshold ? ", flagged" : ", passes as normal";
    change.textContent = `${score >= clean ? "+" : "−"}${Math.abs(score - clean).toFixed(3)} since the clean image${verdict}`;
    node.classList.toggle("flagged", threshold !== null && score > threshold);
  };
  return [node, show, () => (range = null)];
}

function render({ model, el }) {
  const facts = model.get("_facts");
  const { size, threshold, judge, labels, scores } = facts;
  const area = size * size;
  const [images, maps, reconstructions] = ["_images", "_maps", "_reconstructions"].map((name) => bytes(model.get(name)));
  const n = scores.length;

  // --- the picture ----------------------------------------------------------------------------------------------
  let original = null; // RGB bytes, what the eraser brings back
  let pixels = null; // RGB bytes, what is painted
  let clean = null; // the answer for the original
  let latest = null; // the latest answer
  let past = []; // pixels before each stroke
  let [tool, radius, colour] = ["brush", Math.max(1, Math.round(size / 32)), [20, 20, 20]];

  const inDisc = (x, y, visit) => {
    for (let v = Math.max(0, y - radius); v <= Math.min(size - 1, y + radius); v++)
      for (let u = Math.max(0, x - radius); u <= Math.min(size - 1, x + radius); u++)
        if ((u - x) ** 2 + (v - y) ** 2 <= radius ** 2 + 0.5) visit(u, v, 3 * (v * size + u));
  };
  const dab = (x, y) => {
    const before = tool === "blur" ? pixels.slice() : null;
    inDisc(x, y, (u, v, at) => {
      if (tool === "brush") pixels.set(colour, at);
      if (tool === "eraser") pixels.set(original.subarray(at, at + 3), at);
      if (tool === "blur")
        for (let c = 0; c < 3; c++) {
          let [sum, count] = [0, 0];
          for (let b = Math.max(0, v - 1); b <= Math.min(size - 1, v + 1); b++)
            for (let a = Math.max(0, u - 1); a <= Math.min(size - 1, u + 1); a++) (sum += before[3 * (b * size + a) + c]), count++;
          pixels[at + c] = Math.round(sum / count);
        }
    });
  };
  const swap = ([x, y], [u, v]) => {
    const inside = (a) => clamp(a, radius, size - 1 - radius);
    [x, y, u, v] = [x, y, u, v].map(inside);
    const before = pixels.slice();
    for (let b = -radius; b <= radius; b++)
      for (let a = -radius; a <= radius; a++) {
        const [here, there] = [3 * ((y + b) * size + x + a), 3 * ((v + b) * size + u + a)];
        pixels.set(before.subarray(there, there + 3), here);
        pixels.set(before.subarray(here, here + 3), there);
      }
  };
  const stroke = ([x, y], [u, v]) => {
    const steps = Math.max(Math.abs(u - x), Math.abs(v - y), 1);
    for (let i = 1; i <= steps; i++) dab(Math.round(x + ((u - x) * i) / steps), Math.round(y + ((v - y) * i) / steps));
  };
  const remember = () => (past = [...past.slice(-49), pixels.slice()]);
  const painted = () => {
    const at = [];
    for (let i = 0; i < area; i++)
      if (pixels[3 * i] !== original[3 * i] || pixels[3 * i + 1] !== original[3 * i + 1] || pixels[3 * i + 2] !== original[3 * i + 2]) at.push(i);
    return at;
  };

  // --- what answers ----------------------------------------------------------------------------------------------
  let backend = null;
  let loading = null;
  let [busy, stale] = [false, false];
  const status = element("p", { class: "quiet answered" }, "Paint on the first picture.");
  const problem = element("p", { class: "problem", role: "alert", hidden: true });
  const complain = (error) => {
    status.textContent = "";
    problem.textContent = error.message;
    problem.hidden = false;
    told.setAttribute("aria-busy", busy);
  };
  const deafen = kernelBackend(model, (kernel) => {
    backend = kernel;
    problem.hidden = true;
    if (stale) ask();
  });
  /** Load the page's own model, once, unless a kernel says that it is there. */
  const wake = () => {
    if (backend || loading) return;
    loading = new Promise((done) => setTimeout(done, 700)) // a kernel that is there answers sooner
      .then(() => {
        if (backend) return;
        status.textContent = "Loading the model …";
        return pageBackend(facts).then((page) => (backend ??= page));
      })
      .then(() => stale && ask(), (error) => backend || complain(error));
  };
  /** Ask for an answer on the pixels as they are; while one is under way the next waits, and only the last counts. */
  const ask = async () => {
    stale = true;
    told.setAttribute("aria-busy", true); // what stands there is of other pixels
    if (!backend) return wake();
    if (busy) return;
    [busy, stale] = [true, false];
    const asked = pixels;
    const forClean = clean === null;
    const start = performance.now();
    try {
      const answer = await backend.answer(forClean ? original : pixels);
      performance.measure("attnad answer", { start });
      problem.hidden = true;
      if (asked === pixels) {
        if (forClean) [clean, stale] = [answer, stale || painted().length > 0];
        latest = answer;
        status.textContent = `${backend.name} answered in ${Math.round(performance.now() - start)} ms`;
      }
    } catch (error) {
      complain(error);
    }
    busy = false;
    told.setAttribute("aria-busy", stale);
    show();
    if (stale) ask();
  };

  // --- elements --------------------------------------------------------------------------------------------------
  const canvas = (attributes = {}) => element("canvas", { width: size, height: size, ...attributes });
  const board = canvas({ tabindex: 0, role: "application", "aria-label": "Picture to paint on: arrow keys move the brush, space paints" });
  const [mapCanvas, reconstructionCanvas] = [canvas(), canvas()];
  const cursor = shape("path", { class: "halo cursor" });
  const cursorLine = shape("path", { class: "cursor" });
  const edges = [0, 1].map(() => shape("path", { class: "truth" }));
  const [tools, showTool] = choices(
    "Tool",
    [["brush", "Brush"], ["eraser", "Eraser"], ["swap", "Swap patches", "press on one place and release on another"], ["blur", "Blur"]],
    (value) => {
      tool = value;
      dye.hidden = tool !== "brush";
      show();
    },
  );
  const ink = element("input", { type: "color", value: "#141414", oninput: () => (colour = [1, 3, 5].map((i) => parseInt(ink.value.slice(i, i + 2), 16))) });
  const dye = element("label", { class: "picker" }, element("span", {}, "Colour"), ink);
  const [width, showWidth] = slider("Width", 1, Math.max(2, Math.round(size / 8)), 1, (v) => `${2 * v + 1} px`, (value) => {
    radius = value;
    show();
  });
  const undo = button("Undo", () => undone());
  const again = button("Start again", () => begin(original, clean));
  const [colourMap, showColourMap, palette] = colourPicker(model);
  const meters = labels.map(([name, label]) => meter(label, name === judge ? threshold : null));
  const under = element("p", { class: "under" });
  const told = element("div", { class: "meters", "aria-busy": "false" }, ...meters.map(([node]) => node), under);
  const scale = element("span", { class: "ramp", "aria-hidden": "true" });
  const [spoken, say] = announcer();

  const undone = () => {
    if (!past.length) return;
    pixels = past.pop();
    ask();
    show();
  };

  // --- which picture ---------------------------------------------------------------------------------------------
  /** Begin with RGB bytes, and with their answer where it is known. */
  const begin = (start, answer) => {
    [original, pixels, clean, latest, past] = [start, start.slice(), answer, answer, []];
    for (const [, , reset] of meters) reset();
    if (!answer) ask();
    show();
  };
  const given = (i) => {
    const reconstruction = reconstructions.length && nth(reconstructions, i, 3 * area);
    return [nth(images, i, 3 * area), { map: nth(maps, i, area), reconstruction, scores: scores[i] }];
  };
  const pictures = scores.map((_, i) => paintPixels(canvas(), given(i)[0], 3));
  const [thumbs, showThumb] = thumbnails(pictures, (index) => {
    if (model.get("index") === index) begin(...given(index)); // after an image of one's own
    save(model, { index });
  });
  const own = async (file) => {
    try {
      const picture = await createImageBitmap(file);
      const small = document.createElement("canvas");
      small.width = small.height = size;
      const context = small.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(picture, 0, 0, size, size);
      const data = context.getImageData(0, 0, size, size).data;
      begin(Uint8Array.from({ length: 3 * area }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]), null);
      problem.hidden = true;
    } catch {
      complain(new Error(`${file.name} is not an image that this browser can read. Try a PNG or JPEG file.`));
    }
  };
  const file = element("input", { type: "file", accept: "image/*", class: "unseen", tabindex: -1, "aria-label": "Photograph to paint on", onchange: () => {
    if (file.files[0]) own(file.files[0]);
    file.value = ""; // so that the same file can be chosen again
  } });
  const open = button("Your own image …", () => file.click());

  // --- the brush -------------------------------------------------------------------------------------------------
  let at = [size >> 1, size >> 1]; // pixel under the brush
  let from = null; // where a stroke or a swap began
  let shown = false; // is the brush drawn
  const press = () => {
    remember();
    from = at;
    if (tool === "swap") return;
    dab(...at);
    ask();
  };
  const release = () => {
    if (from && tool === "swap") {
      swap(from, at);
      ask();
    }
    from = null;
    show();
  };
  board.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    board.setPointerCapture(event.pointerId);
    at = pixelAt(event, board);
    press();
    show();
  });
  board.addEventListener("pointermove", (event) => {
    const to = pixelAt(event, board);
    if (from && tool !== "swap") {
      stroke(at, to);
      ask();
    }
    [at, shown] = [to, true];
    draw();
  });
  board.addEventListener("pointerup", release);
  board.addEventListener("pointercancel", release);
  board.addEventListener("pointerleave", () => {
    shown = document.activeElement === board;
    draw();
  });
  for (const kind of ["focus", "blur"])
    board.addEventListener(kind, () => {
      shown = kind === "focus" && board.matches(":focus-visible");
      if (kind === "blur" && tool === "swap") from = null;
      draw();
    });
  board.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step && event.key !== " " && event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    shown = true;
    if (step) at = at.map((a, i) => clamp(a + (event.shiftKey ? 8 : 1) * step[i], 0, size - 1));
    else if (event.key === "Escape") from = null;
    else if (tool !== "swap") press(), (from = null);
    else if (from) release();
    else press();
    draw();
  });

  // --- drawing ---------------------------------------------------------------------------------------------------
  const show = () => {
    paintPixels(board, pixels, 3);
    const [x, y] = at;
    const square = (u, v) => `M${u - radius} ${v - radius}h${2 * radius + 1}v${2 * radius + 1}h-${2 * radius + 1}z`;
    const ring = `M${x - radius} ${y + 0.5}a${radius + 0.5} ${radius + 0.5} 0 1 0 ${2 * radius + 1} 0a${radius + 0.5} ${radius + 0.5} 0 1 0 -${2 * radius + 1} 0`;
    const place = tool === "swap" ? square(x, y) + (from ? square(...from) : "") : ring;
    for (const path of [cursor, cursorLine]) path.setAttribute("d", shown ? place : "");
    showTool(tool);
    showWidth(radius);
    showColourMap();
    scale.style.background = gradient(palette());
    undo.disabled = !past.length;
    showThumb(model.get("index"));
    const changed = painted();
    for (const path of edges) path.setAttribute("d", "");
    under.textContent = "Nothing is painted yet.";
    if (!latest) return;
    paintMap(mapCanvas, latest.map, palette());
    if (latest.reconstruction) paintPixels(reconstructionCanvas, latest.reconstruction, 3);
    meters.forEach(([, showMeter], i) => showMeter(latest.scores[i], clean.scores[i]));
    if (!changed.length) return;
    const isChanged = new Uint8Array(area);
    for (const i of changed) isChanged[i] = 1;
    edges.forEach((path) => path.setAttribute("d", outline((i) => isChanged[i], size, size)));
    const mean = (map) => (changed.reduce((sum, i) => sum + map[i], 0) / changed.length / 255).toFixed(2);
    under.replaceChildren("Map where you painted: ", element("strong", {}, mean(clean.map)), " before, ", element("strong", {}, mean(latest.map)), " now.");
    say(`${under.textContent} ${labels.map(([, label], i) => `${label} ${latest.scores[i].toFixed(2)}`).join(", ")}.`);
  };
  const draw = once(show);

  const widget = root(
    facts.title,
    element("header", { class: "bar" }, element("h3", {}, facts.title), status),
    problem,
    element("div", { class: "bar tools" }, tools, dye, width, element("div", { class: "buttons" }, undo, again)),
    element(
      "div",
      { class: "paint" },
      figure(size, size, [board, layer(size, size, cursor, cursorLine)], "paint here"),
      figure(size, size, [mapCanvas, layer(size, size, ...edges)], element("span", {}, "anomaly map: 0 ", scale, " 1")),
      ...(reconstructions.length ? [figure(size, size, [reconstructionCanvas], "reconstruction")] : []),
    ),
    told,
    element("div", { class: "bar" }, thumbs, open, file, colourMap),
    element("p", { class: "quiet" }, "On the lines below the scores: ", element("i", { class: "clean" }), " clean image, ", element("i", { class: "now" }), " now, ", element("i", { class: "limit" }), " threshold. You can also drop an image of your own here; it goes nowhere but to the model."),
    spoken,
  );
  widget.addEventListener("pointerenter", wake, { once: true });
  widget.addEventListener("focusin", wake, { once: true });
  widget.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "z") return;
    event.preventDefault();
    undone();
  });
  widget.addEventListener("dragover", (event) => event.preventDefault());
  widget.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) own(event.dataTransfer.files[0]);
  });
  el.replaceChildren(widget);
  const restart = () => begin(...given(clamp(model.get("index"), 0, n - 1)));
  const closing = [deafen, listen(model, ["index"], restart), listen(model, ["colormap"], draw)];
  restart();
  return () => closing.forEach((close) => close());
}

export default { render };
