// Plots of what boards emit, and what every widget of ours stands on. cm_magics/live.py puts the
// files together: no build step, no dependencies.
//
// Boards are untrusted for ever: what they say becomes text nodes, or numbers on a canvas, and
// nothing else. There is no innerHTML in here, and a test looks for it.

const MOST_POINTS = 2000; // of one line in a plot
const MOST_LINES = 24; // in a plot; of more, the first
const collator = new Intl.Collator("en", { numeric: true });
const COLOURS = ["#1f9ed1", "#e8833a", "#45a85b", "#c75bb0", "#d4b106", "#7d7bd6", "#d9534f", "#3fb8af"];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

function button(text, act, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", act);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Says that the server is gone, and why; "" when it is there.
function lostBanner() {
  return el("div", { class: "cm-lost", role: "alert", hidden: "" });
}

function tellLost(banner, why = "") {
  banner.hidden = !why;
  setText(banner, why);
}

// However often it is called, the act happens once, before the next picture.
function onFrame(act) {
  let frame = null;
  return () => {
    frame ??= requestAnimationFrame(() => {
      frame = null;
      act();
    });
  };
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Lines over time, on a canvas.
class Chart {
  constructor(only = null) {
    this.only = only; // the names of values that are drawn; null: all that are numbers
    this.lines = new Map(); // "board name" -> {board, name, points}
    this.canvas = el("canvas", { role: "img", "aria-label": "Plot" });
    this.legend = el("div", { class: "cm-legend" });
    this.node = el("div", { class: "cm-chart" }, this.canvas, this.legend);
    this.draw = onFrame(() => this.drawNow());
    this.watch = new ResizeObserver(() => this.draw());
    this.watch.observe(this.node);
  }

  clear() {
    this.lines.clear();
    this.draw();
  }

  add(samples) {
    const late = new Set();
    for (const [board, at, values] of samples) {
      for (const [name, value] of Object.entries(values)) {
        if (!isNumber(value) || (this.only && !this.only.includes(name))) continue;
        const key = JSON.stringify([board, name]);
        if (!this.lines.has(key) && this.lines.size < MOST_LINES) this.lines.set(key, { board, name, points: [] });
        const line = this.lines.get(key);
        if (!line) continue;
        if (at <= (line.points.at(-1)?.[0] ?? -Infinity)) late.add(line);
        line.points.push([at, value]);
      }
    }
    for (const line of late) line.points = inOrder(line.points);
    for (const { points } of this.lines.values()) points.splice(0, points.length - MOST_POINTS);
    this.draw();
  }

  // By their names, not as they happened to come.
  sorted() {
    const order = (one, two) => collator.compare(one.board, two.board) || collator.compare(one.name, two.name);
    return [...this.lines.values()].sort(order);
  }

  names(lines) {
    const one = new Set(lines.map((line) => line.name)).size === 1;
    const alone = new Set(lines.map((line) => line.board)).size === 1;
    return lines.map((line) => (one && !alone ? line.board : alone ? line.name : `${line.board} ${line.name}`));
  }

  drawNow() {
    const lines = this.sorted(), names = this.names(lines);
    this.legend.replaceChildren(
      ...lines.map((line, at) => {
        const mark = el("i", {});
        mark.style.background = COLOURS[at % COLOURS.length];
        const last = line.points.at(-1)[1];
        return el("span", {}, mark, `${names[at]}  ${+last.toPrecision(6)}`);
      }),
    );
    this.canvas.hidden = !lines.length;
    if (!lines.length) this.legend.replaceChildren("Nothing was emitted yet: cm.emit(temp=21.5) on a board.");
    this.paint(lines);
  }

  paint(lines) {
    const ratio = window.devicePixelRatio || 1;
    const wide = this.node.clientWidth, high = 180;
    if (!wide) return;
    Object.assign(this.canvas, { width: wide * ratio, height: high * ratio });
    const pen = this.canvas.getContext("2d"), style = getComputedStyle(this.node);
    pen.scale(ratio, ratio);
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = pen.strokeStyle = style.color;
    const points = lines.flatMap((line) => line.points);
    if (!points.length) return;
    const [from, to] = extent(points.map((point) => point[0]), 1);
    const [low, high_] = extent(points.map((point) => point[1]), 0);
    const x = (at) => 52 + ((at - from) / (to - from)) * (wide - 64);
    const y = (value) => high - 22 - ((value - low) / (high_ - low)) * (high - 34);
    this.axes(pen, { from, to, low, high: high_, x, y, wide });
    lines.forEach((line, at) => {
      pen.beginPath();
      pen.strokeStyle = COLOURS[at % COLOURS.length];
      pen.lineWidth = 1.6;
      line.points.forEach(([when, value], index) => (index ? pen.lineTo : pen.moveTo).call(pen, x(when), y(value)));
      if (line.points.length === 1) pen.arc(x(line.points[0][0]), y(line.points[0][1]), 2, 0, 7);
      pen.stroke();
    });
  }

  axes(pen, { from, to, low, high, x, y, wide }) {
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const value of ticks(low, high, 4)) {
      pen.globalAlpha = 0.2;
      pen.fillRect(52, Math.round(y(value)), wide - 64, 1);
      pen.globalAlpha = 0.8;
      pen.fillText(String(+value.toPrecision(6)), 46, y(value));
    }
    pen.textAlign = "center";
    for (let at = 0; at <= 3; at++) {
      const when = from + ((to - from) * at) / 3;
      const place = Math.min(Math.max(x(when), 78), wide - 38);
      pen.fillText(new Date(when * 1000).toLocaleTimeString([], { hour12: false }), place, 170);
    }
    pen.globalAlpha = 1;
  }

  end() {
    this.watch.disconnect();
  }
}

// History comes after the first news, and overlaps with it.
function inOrder(points) {
  points.sort((one, two) => one[0] - two[0]);
  return points.filter(([at, value], index) => at !== points[index - 1]?.[0] || value !== points[index - 1][1]);
}

function extent(numbers, least) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number < low) low = number;
    if (number > high) high = number;
  }
  const room = high - low > 0 ? 0 : least || Math.abs(high) * 0.1 || 1;
  return [low - room / 2, high + room / 2];
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough) || rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high && found.length < 20; value += step) found.push(value);
  return found;
}

// A plot alone.
class Plot {
  constructor(model) {
    this.chart = new Chart(model.get("values"));
    this.lost = lostBanner();
    this.node = el("div", { class: "cm-fleet" }, this.lost, this.chart.node);
    this.chart.draw();
  }

  take({ kind, samples, why }) {
    if (kind === "samples") this.chart.add(samples);
    tellLost(this.lost, why);
  }

  end() {
    this.chart.end();
  }
}

// How a notebook shows a widget: `View` takes its messages until it is out of the page.
function show(View) {
  return {
    render({ model, el: place }) {
      const view = new View(model), id = Math.random().toString(36).slice(2);
      const listen = (message) => view.take(message);
      model.on("msg:custom", listen);
      place.append(view.node);
      model.send({ do: "open", view: id });
      const again = setTimeout(() => model.send({ do: "here" }), 1000); // by its subshell: live.py
      return () => {
        clearTimeout(again);
        model.off("msg:custom", listen);
        model.send({ do: "close", view: id });
        view.end();
      };
    },
  };
}
