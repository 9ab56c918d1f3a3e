// BestDiscriminator: see best.py for what the traits are.

const REACH = 6; // the drawing shows the plane from -REACH to REACH, both ways

function render({ model, el }) {
  const { real, noise } = model.get("_facts");
  const get = (name) => model.get(name);
  const set = (values) => save(model, values);
  // From whitened features, of covariance 1, to features, and back.
  const axes = () => {
    const [turn, long] = [(get("angle") * Math.PI) / 180, Math.sqrt(get("stretch"))];
    return [Math.cos(turn), Math.sin(turn), long, 1 / long];
  };
  const coloured = ([u, v], [c, s, long, short] = axes()) => [c * long * u - s * short * v, s * long * u + c * short * v];
  const whitened = ([x, y], [c, s, long, short] = axes()) => [(c * x + s * y) / long, (c * y - s * x) / short];

  // --- the plane -------------------------------------------------------------------------------------------------
  const dot = (kind) => shape("circle", { class: kind, r: 0.07 });
  const [reals, fakes] = [real.map(() => dot("real")), noise.map(() => dot("fake"))];
  const rings = [1, 2, 3].map(() => shape("path", { class: "ring" }));
  const [border, through] = [shape("path", { class: "border" }), shape("path", { class: "through" })];
  const point = shape("circle", { class: "point", r: 0.2 });
  const drawing = shape("svg", { viewBox: `${-REACH} ${-REACH} ${2 * REACH} ${2 * REACH}`, "aria-hidden": "true" });
  drawing.append(...fakes, ...reals, ...rings, border, through, point);
  const plane = element("div", { class: "plane" }, drawing);
  const at = (share) => Math.round(20 * clamp(REACH * (2 * share - 1), -REACH, REACH)) / 20;
  onDrag(plane, (across, down) => set({ x: at(across), y: -at(down) }));
  const ellipse = (d) => {
    const map = axes();
    const corners = Array.from({ length: 72 }, (_, i) => {
      const [x, y] = coloured([d * Math.cos((i * Math.PI) / 36), d * Math.sin((i * Math.PI) / 36)], map);
      return `${x.toFixed(3)} ${(-y).toFixed(3)}`;
    });
    return `M${corners.join("L")}z`;
  };

  // --- controls and numbers --------------------------------------------------------------------------------------
  const names = { x: "Point, across", y: "Point, up", stretch: "Stretch", angle: "Turn", noise: "Noise" };
  const ranges = { x: [-REACH, REACH, 0.05], y: [-REACH, REACH, 0.05], stretch: [1, 4, 0.1], angle: [0, 180, 1], noise: [0.5, 3, 0.1] };
  const sliders = Object.entries(names).map(([name, label]) => {
    const [low, high, step] = ranges[name];
    const text = (value) => (name === "angle" ? `${value}°` : value.toFixed(step < 0.1 ? 2 : 1));
    const [node, show, input] = slider(label, low, high, step, text, (value) => set({ [name]: value }));
    if (step < 0.1) input.step = "any"; // a walk along the ellipse ends anywhere
    return [node, () => show(get(name))];
  });
  const walk = () => {
    const [u, v] = whitened([get("x"), get("y")]);
    const [c, s] = [Math.cos(Math.PI / 6), Math.sin(Math.PI / 6)];
    const [x, y] = coloured([c * u - s * v, s * u + c * v]);
    set({ x, y });
  };
  const heads = ["among real features", "among fakes", "their log-ratio", "Mahalanobis distance", "distance from the middle"];
  const cells = heads.map(() => element("td", {}));
  const table = tableOf("What is known of the point", [], heads.map((head, i) => [[head], cells[i]]));
  const verdict = element("p", { class: "verdict" });
  const [spoken, say] = announcer();

  const show = () => {
    const [map, sigma] = [axes(), get("noise")];
    const place = (node, at) => {
      const [x, y] = coloured(at, map);
      node.setAttribute("cx", x);
      node.setAttribute("cy", -y);
    };
    real.forEach((z, i) => place(reals[i], z));
    noise.forEach(([a, b, c, d], i) => place(fakes[i], [a + sigma * c, b + sigma * d])); // a real one, whitened, and noise
    const [x, y] = [get("x"), get("y")];
    const [u, v] = whitened([x, y], map);
    const [squared, wide] = [u * u + v * v, 1 + sigma * sigma];
    // Densities of two Gaussians in the plane; the determinant of the covariance is 1, and `wide` squared.
    const density = (variance) => Math.exp(-squared / (2 * variance)) / (2 * Math.PI * variance);
    const logit = Math.log(wide) - (squared * (1 - 1 / wide)) / 2;
    rings.forEach((ring, i) => ring.setAttribute("d", ellipse(i + 1)));
    border.setAttribute("d", ellipse(Math.sqrt((2 * Math.log(wide)) / (1 - 1 / wide)))); // where the logit is 0
    through.setAttribute("d", ellipse(Math.sqrt(squared)));
    point.setAttribute("cx", x);
    point.setAttribute("cy", -y);
    sliders.forEach(([, update]) => update());
    const numbers = [density(1).toFixed(4), density(wide).toFixed(4), logit.toFixed(2), Math.sqrt(squared).toFixed(2), Math.hypot(x, y).toFixed(2)];
    cells.forEach((cell, i) => (cell.textContent = numbers[i]));
    verdict.textContent =
      `At a Mahalanobis distance of ${numbers[3]} the best discriminator says ${numbers[2]}: ` +
      `${logit > 0 ? "real" : "fake"}, here and everywhere on this ellipse.`;
    say(verdict.textContent);
  };
  const draw = once(show);

  const key = [["real", "real features"], ["fake", "fakes: real ones with noise"], ["border", "logit 0"], ["through", "all places as far as the point"]];
  el.replaceChildren(
    root(
      "The best discriminator between a Gaussian and a wider one",
      element("header", { class: "bar" }, element("h3", {}, "The best discriminator is a distance"), button("Walk along the ellipse", walk)),
      element("div", { class: "explorer" },
        element("div", {}, plane, element("p", { class: "key" }, ...key.map(([kind, text]) => element("span", {}, element("i", { class: `mark ${kind}` }), text)))),
        element("div", { class: "part" }, ...sliders.map(([node]) => node), table),
      ),
      verdict,
      element("p", { class: "quiet" }, "Drag the point, or use the sliders. Thin lines: Mahalanobis distances 1, 2 and 3."),
      spoken,
    ),
  );
  show();
  return listen(model, Object.keys(names), draw);
}

export default { render };
