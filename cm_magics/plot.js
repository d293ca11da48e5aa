// Plots of the values that boards emit, and helpers that all widgets use. There is no build step:
// javascript_module (cm_magics/live_widget.py) concatenates the files.
//
// Boards are never trusted: text from a board becomes a text node, numbers are drawn on a canvas.
// A test checks that nothing here assigns innerHTML or creates HTML from a string.

const MAX_POINTS = 2000; // points of one line in a plot
const MAX_LINES = 24; // lines in a plot; further ones are ignored
const collator = new Intl.Collator("en", { numeric: true });
const COLOURS = ["#1f9ed1", "#e8833a", "#45a85b", "#c75bb0", "#d4b106", "#7d7bd6", "#d9534f", "#3fb8af"];

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

function button(text, onClick, attributes = {}) {
  const node = el("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", onClick);
  return node;
}

// Set a text only if it differs: rewriting it clears the user's selection, and screen readers repeat it.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A banner that is shown while the server is unreachable.
function lostBanner() {
  return el("div", { class: "cm-lost", role: "alert", hidden: "" });
}

// Show why the server is unreachable; "" hides the banner.
function showLost(banner, reason = "") {
  banner.hidden = !reason;
  setText(banner, reason);
}

// Return a function that calls `callback` once before the next frame, however often it is called.
function oncePerFrame(callback) {
  let frame = null;
  return () => {
    frame ??= requestAnimationFrame(() => {
      frame = null;
      callback();
    });
  };
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Lines over time, on a canvas.
class Chart {
  constructor(valueNames = null) {
    this.valueNames = valueNames; // names of the values to draw; null: all that are numbers
    this.lines = new Map(); // JSON of [board, name] -> {board, name, points}
    this.canvas = el("canvas", { role: "img", "aria-label": "Plot" });
    this.legend = el("div", { class: "cm-legend" });
    this.node = el("div", { class: "cm-chart" }, this.canvas, this.legend);
    this.draw = oncePerFrame(() => this.drawNow());
    this.resizeObserver = new ResizeObserver(() => this.draw());
    this.resizeObserver.observe(this.node);
  }

  clear() {
    this.lines.clear();
    this.draw();
  }

  add(samples) {
    const unsorted = new Set(); // lines that got a sample older than their last one
    for (const [board, time, values] of samples) {
      for (const [name, value] of Object.entries(values)) {
        if (!isNumber(value) || (this.valueNames && !this.valueNames.includes(name))) continue;
        const key = JSON.stringify([board, name]);
        if (!this.lines.has(key) && this.lines.size < MAX_LINES) this.lines.set(key, { board, name, points: [] });
        const line = this.lines.get(key);
        if (!line) continue;
        if (time <= (line.points.at(-1)?.[0] ?? -Infinity)) unsorted.add(line);
        line.points.push([time, value]);
      }
    }
    for (const line of unsorted) line.points = sortAndDeduplicate(line.points);
    for (const { points } of this.lines.values()) points.splice(0, points.length - MAX_POINTS);
    this.draw();
  }

  // Return the lines sorted by name, so that colours do not depend on the order of arrival.
  sortedLines() {
    const order = (a, b) => collator.compare(a.board, b.board) || collator.compare(a.name, b.name);
    return [...this.lines.values()].sort(order);
  }

  // Return the lines' labels in the legend, without a part that is the same for all of them.
  labels(lines) {
    const sameName = new Set(lines.map((line) => line.name)).size === 1;
    const sameBoard = new Set(lines.map((line) => line.board)).size === 1;
    return lines.map((line) => {
      if (sameBoard) return line.name;
      return sameName ? line.board : `${line.board} ${line.name}`;
    });
  }

  drawNow() {
    const lines = this.sortedLines(), labels = this.labels(lines);
    this.legend.replaceChildren(
      ...lines.map((line, index) => {
        const mark = el("i", {});
        mark.style.background = COLOURS[index % COLOURS.length];
        const last = line.points.at(-1)[1];
        return el("span", {}, mark, `${labels[index]}  ${+last.toPrecision(6)}`);
      }),
    );
    this.canvas.hidden = !lines.length;
    if (!lines.length) this.legend.replaceChildren("No values yet: boards emit them with cm.emit(temp=21.5).");
    this.drawLines(lines);
  }

  drawLines(lines) {
    const ratio = window.devicePixelRatio || 1;
    const width = this.node.clientWidth, height = 180;
    if (!width) return;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    const context = this.canvas.getContext("2d"), style = getComputedStyle(this.node);
    context.scale(ratio, ratio);
    context.font = `11px ${style.fontFamily}`;
    context.fillStyle = context.strokeStyle = style.color;
    const points = lines.flatMap((line) => line.points);
    if (!points.length) return;
    const [from, to] = extent(points.map((point) => point[0]), 1);
    const [low, high] = extent(points.map((point) => point[1]), 0);
    const x = (time) => 52 + ((time - from) / (to - from)) * (width - 64);
    const y = (value) => height - 22 - ((value - low) / (high - low)) * (height - 34);
    this.drawAxes(context, { from, to, low, high, x, y, width });
    lines.forEach((line, index) => {
      context.beginPath();
      context.strokeStyle = COLOURS[index % COLOURS.length];
      context.lineWidth = 1.6;
      for (const [time, value] of line.points) context.lineTo(x(time), y(value)); // the first one moves
      if (line.points.length === 1) context.arc(x(line.points[0][0]), y(line.points[0][1]), 2, 0, 7);
      context.stroke();
    });
  }

  drawAxes(context, { from, to, low, high, x, y, width }) {
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of ticks(low, high, 4)) {
      context.globalAlpha = 0.2;
      context.fillRect(52, Math.round(y(value)), width - 64, 1);
      context.globalAlpha = 0.8;
      context.fillText(String(+value.toPrecision(6)), 46, y(value));
    }
    context.textAlign = "center";
    for (let index = 0; index <= 3; index++) {
      const time = from + ((to - from) * index) / 3;
      const left = Math.min(Math.max(x(time), 78), width - 38);
      context.fillText(new Date(time * 1000).toLocaleTimeString([], { hour12: false }), left, 170);
    }
    context.globalAlpha = 1;
  }

  dispose() {
    this.resizeObserver.disconnect();
  }
}

// Earlier samples arrive after the first new ones, and overlap with them.
function sortAndDeduplicate(points) {
  points.sort((a, b) => a[0] - b[0]);
  return points.filter(([time, value], index) => time !== points[index - 1]?.[0] || value !== points[index - 1][1]);
}

// Return the bounds of an axis. Equal numbers get a range of `minimum`, or of 10 % if that is 0.
function extent(numbers, minimum) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number < low) low = number;
    if (number > high) high = number;
  }
  const margin = high - low > 0 ? 0 : minimum || Math.abs(high) * 0.1 || 1;
  return [low - margin / 2, high + margin / 2];
}

// Return round numbers (1, 2 or 5 times a power of 10) between two bounds, about `count` of them.
function ticks(low, high, count) {
  const interval = (high - low) / count, power = 10 ** Math.floor(Math.log10(interval));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= interval) || interval;
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high && values.length < 20; value += step) values.push(value);
  return values;
}

// The widget of %board_plot: one chart.
class Plot {
  constructor(model) {
    this.chart = new Chart(model.get("values"));
    this.lost = lostBanner();
    this.node = el("div", { class: "cm-fleet" }, this.lost, this.chart.node);
    this.chart.draw();
  }

  onMessage({ kind, samples, reason }) {
    if (kind === "samples") this.chart.add(samples);
    showLost(this.lost, reason);
  }

  dispose() {
    this.chart.dispose();
  }
}

// Return an anywidget module whose `render` shows a `View` and passes it the widget's messages.
function show(View) {
  return {
    render({ model, el: container }) {
      const view = new View(model), id = Math.random().toString(36).slice(2);
      const listener = (message) => view.onMessage(message);
      model.on("msg:custom", listener);
      container.append(view.node);
      model.send({ do: "open", view: id });
      // JupyterLab sends this one through a subshell, unlike the first: see live_widget.py.
      const ping = setTimeout(() => model.send({ do: "ping" }), 1000);
      return () => {
        clearTimeout(ping);
        model.off("msg:custom", listener);
        model.send({ do: "close", view: id });
        view.dispose();
      };
    },
  };
}
