"use strict";
// The page's own script: the figure with its switches, the theme, and the table's order. It reads the JSON beside it, sets
// text only as text, and asks nothing of any network. Without it the page shows the drawn figures and the whole table.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PANEL = { base: ["task", "data"], data: ["task", "base"], method: ["task", "data", "base"] };
  const WORDS = { base: "base models", data: "data", method: "methods" };
  const LEVELS = "untouched base", GIVEN = "given models", BARS = "intervals", FITS = "fits", PUBLISHED = "published";

  const node = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const draw = (name, attributes = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // ------------------------------------------------------------------------------------------------------- theme
  const theme = document.getElementById("theme");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", theme.textContent + " mode"); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  // ----------------------------------------------------------------------------------------------------- numbers
  const brief = (x) => {
    if (x >= 1e12) return x.toExponential(Number(x.toPrecision(2)) === 10 ** Math.floor(Math.log10(x)) ? 0 : 1).replace("e+", "e");
    for (const [unit, name] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (x >= unit && (x >= 10 * unit || x % (unit / 10) === 0)) return Number((x / unit).toPrecision(3)) + name;
    return String(Number(x.toPrecision(4)));
  };
  const whole = (x) => (x < 1e12 ? Math.round(x).toLocaleString("en") : x.toExponential(2).replace("e+", "e"));
  const digits = (x) => Number(x.toPrecision(3)).toString();
  const round = (x) => Math.round(10 * x) / 10;

  /** Round numbers from low to high, about `count` of them. */
  function nice(low, high, count) {
    const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.7 * rough);
    const ticks = [];
    for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }
  function decades(low, high) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const m of high / low > 300 ? [1] : [1, 2, 5]) if (m * 10 ** power >= low && m * 10 ** power <= high) ticks.push(m * 10 ** power);
    return ticks;
  }

  // ------------------------------------------------------------------------------------------------------ figure
  const live = document.getElementById("live");
  const rulers = (() => {
    const heads = [...new Set(data.lines.filter((l) => l.headline).map((l) => l.ruler))];
    const found = [{ words: heads.length === 1 ? heads[0] : "headline", has: (l) => l.headline }];
    for (const words of new Set(data.lines.filter((l) => !l.headline).map((l) => l.ruler)))
      found.push({ words, has: (l) => !l.headline && l.ruler === words, ghosts: true });
    return found;
  })();
  const kinds = ["base", "data", "method"].filter((kind) => Object.keys(data[kind]).length > 1);
  const state = { by: "base", axis: 0, log: true, ruler: rulers[0], off: new Set([FITS]) };
  const panels = node("div", { class: "panels" });
  const legend = node("div", { class: "controls legend" });
  const tip = node("div", { class: "tip", role: "status", hidden: "" });
  const drawn = []; // what is on the page: {svg, ring, spots}

  /** Buttons of which one is pressed. */
  function choice(words, options, chosen, choose) {
    const group = node("div", { class: "group choice", role: "group", "aria-label": words }, node("span", {}, words));
    options.forEach(([value, label]) => {
      const button = node("button", { type: "button", "aria-pressed": value === chosen }, label);
      button.addEventListener("click", () => {
        for (const other of group.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
        choose(value);
        render();
      });
      group.append(button);
    });
    return group;
  }

  /** Buttons each of which shows or hides what its key stands for; with Shift, it alone of its group. */
  function toggles(words, items) {
    const group = node("div", { class: "group", role: "group", "aria-label": words, title: "Shift-click shows one alone" }, node("span", {}, words));
    const buttons = items.map(([key, label, swatch]) => {
      const button = node("button", { type: "button", "data-key": key, "aria-pressed": !state.off.has(key) }, ...(swatch ? [swatch] : []), label);
      button.addEventListener("click", (event) => {
        const keys = items.map((item) => item[0]);
        if (event.shiftKey) {
          const alone = keys.every((k) => state.off.has(k) === (k !== key));
          for (const k of keys) if (alone || k === key) state.off.delete(k); else state.off.add(k);
        } else if (!state.off.delete(key)) state.off.add(key);
        for (const other of buttons) other.setAttribute("aria-pressed", !state.off.has(other.dataset.key));
        show();
      });
      for (const [on, off] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
        button.addEventListener(on, () => dim(key));
        button.addEventListener(off, () => dim(""));
      }
      return button;
    });
    group.append(...buttons);
    return group;
  }

  const mark = (shape, x, y, r, look) => {
    const k = 0.9 * r, d = {
      o: `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
      "^": `M${x},${y - 1.2 * r}L${x + 1.1 * r},${y + k}H${x - 1.1 * r}z`, v: `M${x},${y + 1.2 * r}L${x + 1.1 * r},${y - k}H${x - 1.1 * r}z`,
      s: `M${x - k},${y - k}h${2 * k}v${2 * k}h${-2 * k}z`, D: `M${x},${y - 1.3 * r}L${x + 1.3 * r},${y}L${x},${y + 1.3 * r}L${x - 1.3 * r},${y}z`,
      P: `M${x - r},${y}H${x + r}M${x},${y - r}V${y + r}`, X: `M${x - k},${y - k}L${x + k},${y + k}M${x + k},${y - k}L${x - k},${y + k}`,
    }[shape];
    return draw("path", { d, fill: look.hollow ? "var(--paper)" : look.colour, stroke: look.colour, "stroke-width": "PX".includes(shape) ? 2.2 : 1.4 });
  };
  const swatch = (look, shape, dash) => draw("svg", { width: 30, height: 12, "aria-hidden": "true" },
    draw("path", { d: "M1,6H29", stroke: look.colour, "stroke-width": shape ? 1.8 : 1.2, "stroke-dasharray": dash, fill: "none" }), ...(shape ? [mark(shape, 15, 6, 3.6, look)] : []));

  function looks(line) {
    const how = data.method[line.method], told = data[state.by][line[state.by]];
    return { colour: told.colour, hollow: told.hollow, marker: how.marker, dash: how.dash };
  }

  function describeLegend() {
    const groups = [...new Set([state.by, ...kinds])].sort().map((kind) => toggles(WORDS[kind], Object.entries(data[kind]).map(([name, look]) => {
      const told = kind === state.by ? look : { colour: "var(--ink)", hollow: false };
      const shown = kind === "method" ? swatch(told, look.marker, look.dash) : kind === state.by ? swatch(told, "o", "") : null;
      return [`${kind}:${name}`, data.notes[name] && kind === "base" ? `${name} (${data.notes[name]})` : name, shown];
    })));
    const soft = { colour: state.by === "base" ? "var(--ink)" : "var(--soft)" };
    const more = [[BARS, BARS, null]];
    if (data.levels.some((l) => !l.given)) more.unshift([LEVELS, LEVELS, swatch(soft, "", "5 3")]);
    if (data.levels.some((l) => l.given)) more.push([GIVEN, GIVEN, swatch(soft, "", "1 2.5")]);
    if (data.lines.some((l) => (l.fit || []).length)) more.push([FITS, FITS, null]);
    if (data.published.length) more.push([PUBLISHED, PUBLISHED, swatch({ colour: "var(--ink)", hollow: true }, "D", "0 30")]);
    legend.replaceChildren(...groups, toggles("shown", more));
  }

  function panelsOf() {
    const lines = data.lines.filter(state.ruler.has), found = new Map();
    for (const line of lines) {
      const key = JSON.stringify([...PANEL[state.by].slice(1), "task"].map((column) => line[column]).concat(line.ruler));
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(line);
    }
    const several = PANEL[state.by].slice(1).filter((column) => Object.keys(data[column]).length > 1);
    return [...found.keys()].sort().map((key) => {
      const mine = found.get(key), first = mine[0], bases = new Set(mine.map((l) => l.base));
      const curved = new Set(data.lines.map((l) => l.base));
      return {
        lines: mine,
        rows: JSON.stringify(PANEL[state.by].slice(1).map((column) => first[column])),
        column: JSON.stringify([first.task, first.ruler]),
        title: ["task", ...several].map((column) => first[column]).join("  ·  "),
        words: first.ruler + (first.up ? "" : ", lower is better"),
        levels: data.levels.filter((l) => l.task === first.task && l.ruler === first.ruler && (bases.has(l.base) || !curved.has(l.base))),
        ghosts: state.ruler.ghosts ? data.lines.filter((l) => l.headline && l.metric === first.metric && PANEL[state.by].every((c) => l[c] === first[c])) : [],
        published: first.headline && state.axis === 0 ? data.published.filter((p) => PANEL[state.by].every((c) => p[c] === first[c])) : [],
        scale: [...data.lines, ...data.levels].filter((l) => l.task === first.task && l.metric === first.metric),
      };
    });
  }

  function render() {
    tip.hidden = true;
    describeLegend();
    drawn.length = 0;
    const made = panelsOf();
    panels.replaceChildren(...made.map((panel) => {
      const box = node("div", { class: "panel" }, node("h3", {}, panel.title), node("p", {}, panel.words));
      panel.box = box;
      return box;
    }), tip);
    const columns = new Set(made.map((p) => p.column)).size, rows = new Set(made.map((p) => p.rows)).size;
    panels.style.setProperty("--columns", Math.min(3, rows > 1 && columns > 1 ? columns : made.length)); // tasks side by side
    const width = panels.clientWidth && made.length ? made[0].box.clientWidth : 400;
    for (const panel of made) panel.box.append(drawPanel(panel, width));
    show();
  }

  function drawPanel(panel, width) {
    const values = panel.scale.flatMap((l) => (l.points || [l]).flatMap((p) => p.y)).concat(panel.published.flatMap((p) => [p.score - p.reach, p.score + p.reach])).filter((y) => y !== null);
    const bottom = Math.min(...values), top = Math.max(...values), room = 0.06 * Math.max(top - bottom, 0.02);
    const yTicks = nice(bottom - room, top + room, 5);
    const decimals = Math.max(0, ...yTicks.map((t) => (String(t).split(".")[1] || "").length));
    const height = Math.min(290, Math.max(210, 0.62 * width)), left = 12 + 6.6 * Math.max(...yTicks.map((t) => t.toFixed(decimals).length)), right = width - 12;
    const xs = panel.lines.flatMap((l) => l.points.map((p) => p.x[state.axis])).filter((x) => x !== null);
    const words = data.axes[state.axis].words;
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": `${panel.title}, ${panel.words}: ${panel.lines.length} curves against ${words}. Arrow keys go from point to point.` });
    if (!xs.length) {
      svg.append(draw("text", { x: 0, y: 30 }, `No line here has ${words}.`));
      drawn.push({ svg, spots: [] });
      return svg;
    }
    const low = state.log ? Math.min(...xs) / 1.35 : 0, high = Math.max(...xs) * (state.log ? 1.35 : 1.04);
    const share = (x) => (state.log ? Math.log(x / low) / Math.log(high / low) : x / high);
    const px = (x) => left + share(x) * (right - left), py = (y) => 8 + (1 - (y - bottom + room) / (top - bottom + 2 * room)) * (height - 36);
    const grid = draw("g", { class: "grid" }), axis = draw("g", { class: "axis" });
    for (const t of yTicks) {
      grid.append(draw("line", { x1: left, x2: right, y1: py(t), y2: py(t) }));
      axis.append(draw("text", { x: left - 7, y: py(t) + 4, "text-anchor": "end" }, t.toFixed(decimals)));
    }
    axis.append(draw("line", { x1: left, x2: right, y1: height - 26, y2: height - 26 }));
    const all = state.axis === 0 && state.log ? [...new Set(xs)].sort((a, b) => a - b) : state.log ? decades(low, high) : nice(0, high, 5);
    let last = Infinity;
    for (const t of all.slice().reverse()) {
      const labelled = last - px(t) > 14 + 6.6 * brief(t).length;
      axis.append(draw("line", { x1: px(t), x2: px(t), y1: height - 26, y2: height - (labelled ? 22 : 24) }));
      if (labelled) axis.append(draw("text", { x: px(t), y: height - 9, "text-anchor": "middle" }, brief(t)));
      if (labelled) last = px(t);
    }
    svg.append(grid);
    for (const level of panel.levels) svg.append(drawLevel(level, left, right, py));
    const spots = [];
    const path = (points, i, n) => points.map((p) => [px(p.x[state.axis]) + (i - (n - 1) / 2) * Math.min(4, 26 / n), py(p.y[0])]);
    const placed = (line) => line.points.filter((p) => p.x[state.axis] !== null);
    for (const ghost of panel.ghosts) {
      const g = group(ghost, "line"), look = looks(ghost);
      g.append(draw("polyline", { points: path(placed(ghost), 0, 1).join(" "), fill: "none", stroke: look.colour, "stroke-width": 0.8, opacity: 0.55, "stroke-dasharray": look.dash }));
      svg.append(g);
    }
    panel.lines.forEach((line, i) => {
      const g = group(line, "line"), look = looks(line), points = placed(line), at = path(points, i, panel.lines.length);
      if (line.fit && line.fit.length && state.axis === 0) g.append(drawFit(line, look, px, py));
      g.append(draw("polyline", { points: at.map((p) => p.map(round)).join(" "), fill: "none", stroke: look.colour, "stroke-width": 1.8, "stroke-dasharray": look.dash }));
      points.forEach((p, k) => {
        const [x, y] = at[k].map(round);
        if (p.y[1] !== null) g.append(draw("path", { class: "whisker", d: `M${x},${round(py(p.y[1]))}V${round(py(p.y[2]))}`, stroke: look.colour, "stroke-width": 1.1 }));
        g.append(mark(look.marker, x, y, 3.7, look));
        spots.push({ x, y, g, line: i, text: telling(line, p) });
      });
      svg.append(g);
    });
    panel.published.forEach((p) => {
      const g = group(p, "line");
      g.keys.push(PUBLISHED);
      const x = px(Math.min(Math.max(p.size, low), high)), y = py(p.score), colour = state.by === "base" ? data.base[p.base].colour : "var(--ink)";
      g.append(draw("path", { d: `M${x},${py(p.score - p.reach)}V${py(p.score + p.reach)}`, stroke: colour, "stroke-width": 3, opacity: 0.4 }), mark("D", x, y, 4.4, { colour, hollow: true }));
      spots.push({ x, y, g, line: panel.lines.length, text: [p.text] });
      svg.append(g);
    });
    const ring = draw("circle", { r: 8, fill: "none", stroke: "var(--ink)", "stroke-width": 1.2, visibility: "hidden" });
    svg.append(axis, ring);
    listen(svg, ring, spots);
    drawn.push({ svg, spots, ring });
    return svg;
  }

  /** A group that hides with its base, its data or its method. */
  function group(line, name) {
    const g = draw("g", { class: name });
    g.keys = ["base", "data", "method"].filter((kind) => line[kind] !== undefined).map((kind) => `${kind}:${line[kind]}`);
    return g;
  }

  function drawLevel(level, left, right, py) {
    const g = group(level, "line"), colour = state.by === "base" ? data.base[level.base].colour : "var(--soft)";
    g.keys.push(level.given ? GIVEN : LEVELS);
    const [y, low, high] = level.y;
    if (low !== null) g.append(draw("rect", { class: "whisker", x: left, width: right - left, y: py(high), height: Math.max(0, py(low) - py(high)), fill: colour, opacity: 0.1 }));
    g.append(draw("line", { x1: left, x2: right, y1: py(y), y2: py(y), stroke: colour, "stroke-width": 1.2, "stroke-dasharray": level.given ? "1 2.5" : "5 3" }));
    return g;
  }

  function drawFit(line, look, px, py) {
    const g = draw("g");
    g.keys = [FITS];
    const known = line.fit.filter((f) => f[2] !== null);
    const edge = known.map((f) => `${px(f[0])},${py(f[2])}`).concat(known.slice().reverse().map((f) => `${px(f[0])},${py(f[3])}`));
    g.append(draw("polygon", { points: edge.join(" "), fill: look.colour, opacity: 0.14 }));
    g.append(draw("polyline", { points: line.fit.map((f) => `${px(f[0])},${py(f[1])}`).join(" "), fill: "none", stroke: look.colour, "stroke-width": 1, opacity: 0.8 }));
    return g;
  }

  function telling(line, p) {
    const interval = p.y[1] === null ? "interval not known" : `95% interval ${digits(p.y[1])} to ${digits(p.y[2])}`;
    const [seeds, items, holds] = p.of;
    const lines = [`${line.base}, ${line.method}, on ${line.data}`, `${whole(p.x[0])} example${p.x[0] === 1 ? "" : "s"}: ${digits(p.y[0])}`, interval];
    lines.push(`${seeds} seed${seeds === 1 ? "" : "s"}, ${items} items` + (holds === "items" ? "; the interval holds item noise only" : holds === "seeds" ? "; the interval holds seed noise only" : ""));
    data.axes.slice(1).forEach((axis, i) => { if (p.x[i + 1] !== null) lines.push(`${axis.words}: ${whole(p.x[i + 1])}`); });
    return lines;
  }

  const visible = (spot) => spot.g.style.display !== "none";
  function point(svg, ring, spot) {
    if (!spot) {
      tip.hidden = true;
      ring.setAttribute("visibility", "hidden");
      return;
    }
    for (const other of drawn) if (other.ring && other.ring !== ring) other.ring.setAttribute("visibility", "hidden");
    ring.setAttribute("cx", spot.x);
    ring.setAttribute("cy", spot.y);
    ring.setAttribute("visibility", "visible");
    tip.replaceChildren(node("b", {}, spot.text[0]), ...(spot.text.length > 1 ? ["\n" + spot.text.slice(1).join("\n")] : []));
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), home = panels.getBoundingClientRect();
    const x = box.left - home.left + spot.x, y = box.top - home.top + spot.y;
    tip.style.left = Math.max(0, Math.min(x + 14, home.width - tip.offsetWidth)) + "px";
    tip.style.top = (y - tip.offsetHeight - 14 < -60 ? y + 14 : y - tip.offsetHeight - 14) + "px";
  }

  function listen(svg, ring, spots) {
    let now = null;
    const near = (event) => {
      const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, least = 34 ** 2;
      for (const spot of spots) {
        const far = (spot.x - x) ** 2 + (spot.y - y) ** 2;
        if (far < least && visible(spot)) [best, least] = [spot, far];
      }
      if (best !== now) point(svg, ring, (now = best));
    };
    svg.addEventListener("pointermove", near);
    svg.addEventListener("pointerdown", near);
    svg.addEventListener("pointerleave", () => point(svg, ring, (now = null)));
    svg.addEventListener("blur", () => point(svg, ring, (now = null)));
    svg.addEventListener("keydown", (event) => {
      const shown = spots.filter(visible), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], jump = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") point(svg, ring, (now = null));
      if (!shown.length || (!step && !jump)) return;
      event.preventDefault();
      if (!now || !visible(now)) now = shown[0];
      else if (step) {
        const mine = shown.filter((s) => s.line === now.line);
        now = mine[Math.min(Math.max(mine.indexOf(now) + step, 0), mine.length - 1)];
      } else {
        const lines = [...new Set(shown.map((s) => s.line))], next = lines[(lines.indexOf(now.line) + jump + lines.length) % lines.length];
        now = shown.filter((s) => s.line === next).reduce((a, b) => (Math.abs(b.x - now.x) < Math.abs(a.x - now.x) ? b : a));
      }
      point(svg, ring, now);
    });
  }

  /** Hide what is switched off; nothing is drawn again for it. */
  function show() {
    for (const g of panels.querySelectorAll("g")) if (g.keys) g.style.display = g.keys.some((key) => state.off.has(key)) ? "none" : "";
    const bars = state.off.has(BARS) ? "none" : "";
    for (const whisker of panels.querySelectorAll(".whisker")) whisker.style.display = bars;
  }
  function dim(key) {
    const about = key.includes(":") && !state.off.has(key);
    for (const g of panels.querySelectorAll("g.line")) g.classList.toggle("dim", about && !g.keys.includes(key) && g.keys.some((k) => k.startsWith(key.split(":")[0])));
  }

  if (live && data.lines.length) {
    const controls = node("div", { class: "controls" });
    if (kinds.length && !kinds.includes("base")) state.by = kinds[0];
    if (kinds.length > 1) controls.append(choice("colours tell", kinds.map((kind) => [kind, WORDS[kind]]), state.by, (by) => { state.by = by; }));
    if (rulers.length > 1) controls.append(choice("measure", rulers.map((ruler) => [ruler, ruler.words]), state.ruler, (ruler) => { state.ruler = ruler; }));
    if (data.axes.length > 1) controls.append(choice("across", data.axes.map((axis, i) => [i, i ? axis.words : "examples"]), 0, (axis) => { state.axis = axis; caption(); }));
    controls.append(choice("scale", [[true, "log"], [false, "linear"]], true, (log) => { state.log = log; }));
    const across = node("b");
    const caption = () => { across.textContent = `Score against ${data.axes[state.axis].words}. `; };
    caption();
    const reading = "Bars are 95% intervals over seeds and items; dashed lines with a band are the base before any example. Lines stand slightly apart sideways so that bars do not hide one another.";
    live.append(controls, legend, panels, node("figcaption", {}, across, reading));
    live.hidden = false;
    for (const still of document.querySelectorAll("[data-drawn-again]")) still.hidden = true;
    render();
    let width = panels.clientWidth;
    new ResizeObserver(() => { if (panels.clientWidth !== width) { width = panels.clientWidth; render(); } }).observe(panels);
  }

  // ------------------------------------------------------------------------------------------------------- table
  const table = document.getElementById("table");
  if (table) {
    const FIRST = 150;
    let all = false;
    const body = table.tBodies[0], rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase(), cells: [...row.cells].map((cell) => cell.textContent) }));
    const collator = new Intl.Collator("en", { numeric: true });
    const number = (text) => (text === "" ? NaN : parseFloat(text.replaceAll(",", "")));
    for (const head of table.tHead.rows[0].cells) {
      if (head.ariaHidden === "true") continue;
      const button = node("button", { type: "button" }, head.textContent);
      const numbers = rows.every((r) => r.cells[head.cellIndex] === "" || !isNaN(number(r.cells[head.cellIndex])));
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.ariaSort !== "ascending", column = head.cellIndex;
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.ariaSort = up ? "ascending" : "descending";
        const order = (a, b) => {
          const [p, q] = [a.cells[column], b.cells[column]];
          if (p === "" || q === "") return (p === "") - (q === "");
          return (up ? 1 : -1) * (numbers ? number(p) - number(q) : collator.compare(p, q));
        };
        table.classList.add("sorted");
        rows.sort(order);
        fill();
      });
    }
    const filter = document.getElementById("filter"), shown = document.getElementById("shown"), more = document.getElementById("more");
    /** The first rows in this order that have all the words; laying out thousands at every click would be slow. */
    function fill() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = rows.filter((r) => words.every((word) => r.text.includes(word)));
      body.replaceChildren(...(all ? found : found.slice(0, FIRST)).map((r) => r.row));
      shown.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} points`;
      more.hidden = all || found.length <= FIRST;
      more.textContent = `Show all ${found.length.toLocaleString("en")}`;
    }
    more.addEventListener("click", () => { all = true; fill(); });
    filter.addEventListener("input", fill);
    filter.closest(".filter").hidden = false;
    fill();
  }
})();
