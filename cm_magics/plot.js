// Plots of the values that boards emit, and helpers that all widgets use. There is no build step:
// javascript_module (cm_magics/live_widget.py) concatenates the files.
//
// Boards are never trusted: text from a board becomes a text node, numbers are drawn on a canvas.
// A test checks that nothing here assigns innerHTML or creates HTML from a string.

const MAX_POINTS = 6000; // points of one line in a plot
const DAY_MS = 86400e3;
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

// A banner that says why the widget shows old data, because the notebook's kernel or the server is gone,
// or why nothing follows from what the user did.
class Banner {
  // `lostText` is shown where the kernel has ended, `waitingText` while it does not answer.
  constructor(lostText, waitingText = "") {
    this.lostText = lostText;
    this.waitingText = waitingText;
    this.node = el("div", { class: "cm-lost", role: "alert", hidden: "" });
    this.kernelLost = false;
    this.serverLost = ""; // why the server is unreachable; "" if it is not
    this.isWaiting = false; // whether the kernel has not confirmed what the user did
  }

  // Change some of these; return whether the widget shows old data.
  update({ kernelLost = this.kernelLost, serverLost = this.serverLost, isWaiting = this.isWaiting }) {
    Object.assign(this, { kernelLost, serverLost, isWaiting });
    const waiting = isWaiting ? this.waitingText : "";
    const text = kernelLost ? this.lostText : serverLost || waiting;
    this.node.hidden = !text;
    setText(this.node, text);
    return Boolean(kernelLost || serverLost);
  }
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

const CHART_LEFT = 52; // px: the labels of the value axis
const CHART_RIGHT = 12; // px
const TIME_AXIS_HEIGHT = 22; // px
const PANEL_HEIGHTS = [160, 128, 104]; // px, of one, two, and more panels
const PANEL_GAPS = [12, 20]; // px, above a panel: without and with a name

// Lines over time, on a canvas: a panel with its own axis for each quantity (name of a value). A legend
// entry hides and shows its line; the pointer shows the values at its time.
class Chart {
  constructor(valueNames = null) {
    this.valueNames = valueNames; // names of the values to draw; null: all that are numbers
    this.lines = new Map(); // JSON of [board, name] -> {key, board, name, points}
    this.hiddenKeys = new Set(); // of lines
    this.canvas = el("canvas", { role: "img", "aria-label": "Plot" });
    this.tip = el("div", { class: "cm-tip" });
    this.tip.hidden = true;
    this.legend = el("div", { class: "cm-legend" });
    this.note = ""; // which of the values do not exist; see missing_text in plot.py
    this.node = el("div", { class: "cm-chart" }, this.canvas, this.tip, this.legend);
    this.draw = oncePerFrame(() => this.drawNow());
    this.resizeObserver = new ResizeObserver(() => this.draw());
    this.resizeObserver.observe(this.node);
    this.pointer = null; // {x, y} in the canvas, while the pointer is there
    this.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => this.point({ x: offsetX, y: offsetY }));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
  }

  point(pointer) {
    this.pointer = pointer;
    this.draw();
  }

  clear() {
    this.lines.clear();
    this.hiddenKeys.clear();
    this.draw();
  }

  add(samples) {
    const unsorted = new Set(); // lines that got a sample older than their last one
    for (const [board, time, values] of samples) {
      for (const [name, value] of Object.entries(values)) {
        if (!isNumber(value) || (this.valueNames && !this.valueNames.includes(name))) continue;
        const key = JSON.stringify([board, name]);
        if (!this.lines.has(key) && this.lines.size < MAX_LINES) this.lines.set(key, { key, board, name, points: [] });
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
    lines.forEach((line, index) => Object.assign(line, { label: labels[index], colour: COLOURS[index % COLOURS.length] }));
    this.drawLegend(lines);
    this.canvas.hidden = !lines.length;
    this.tip.hidden = true;
    if (lines.length) this.drawPanels(lines.filter((line) => !this.hiddenKeys.has(line.key)));
  }

  // Update the legend in place: an entry that is replaced between press and release gets no click.
  drawLegend(lines) {
    if (!lines.length) {
      const text = this.note || "No values yet: boards emit them with cm.emit(temp=21.5).";
      setText(this.legend, text);
      this.legendKeys = null;
      return;
    }
    const keys = JSON.stringify([this.note, ...lines.map((line) => line.key)]);
    if (this.legendKeys !== keys) {
      this.legendKeys = keys;
      const note = this.note ? [el("div", { class: "cm-note" }, this.note)] : [];
      this.legend.replaceChildren(...lines.map((line) => this.legendEntry(line)), ...note);
    }
    lines.forEach((line, index) => {
      const node = this.legend.children[index];
      node.setAttribute("aria-pressed", String(!this.hiddenKeys.has(line.key)));
      node.firstChild.style.background = line.colour;
      setText(node.lastChild, `${line.label}  ${numberText(line.points.at(-1)[1])}`);
    });
  }

  legendEntry(line) {
    const node = button("", () => this.toggle(line.key), { title: "Hide or show this line" });
    node.replaceChildren(el("i", {}), el("span", {}));
    return node;
  }

  toggle(key) {
    if (!this.hiddenKeys.delete(key)) this.hiddenKeys.add(key);
    this.draw();
  }

  // Draw a panel for each quantity, one above the other, with a common time axis.
  drawPanels(lines) {
    const names = [...new Set(lines.map((line) => line.name))].sort(collator.compare);
    const panelHeight = PANEL_HEIGHTS[Math.min(Math.max(names.length, 1), PANEL_HEIGHTS.length) - 1];
    const width = this.node.clientWidth, height = Math.max(names.length, 1) * panelHeight + TIME_AXIS_HEIGHT;
    if (!width) return;
    const context = this.startDrawing(width, height);
    const times = lines.flatMap((line) => line.points.map((point) => point[0]));
    if (!times.length) return;
    const [from, to] = extent(times, 1), span = width - CHART_LEFT - CHART_RIGHT;
    const x = (time) => CHART_LEFT + ((time - from) / (to - from)) * span;
    const gap = PANEL_GAPS[names.length > 1 ? 1 : 0];
    names.forEach((name, index) => {
      const panel = { lines: lines.filter((line) => line.name === name), name: names.length > 1 ? name : "" };
      this.drawPanel(context, { ...panel, x, width, top: index * panelHeight + gap, bottom: (index + 1) * panelHeight });
    });
    this.drawTimes(context, { from, to, x, width, height });
    if (!this.pointer || this.pointer.x < CHART_LEFT) return;
    const time = from + ((this.pointer.x - CHART_LEFT) / span) * (to - from);
    this.drawPointer(context, lines, { time, margin: (to - from) / 20, x, width, height });
  }

  startDrawing(width, height) {
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d"), style = getComputedStyle(this.node);
    context.scale(ratio, ratio);
    context.font = `11px ${style.fontFamily}`;
    context.fillStyle = context.strokeStyle = style.color;
    return context;
  }

  drawPanel(context, { lines, name, x, width, top, bottom }) {
    const [low, high] = extent(lines.flatMap((line) => line.points.map((point) => point[1])), 0);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const value of ticks(low, high, 4)) {
      context.globalAlpha = 0.2;
      context.fillRect(CHART_LEFT, Math.round(y(value)), width - CHART_LEFT - CHART_RIGHT, 1);
      context.globalAlpha = 0.8;
      context.fillText(numberText(value), CHART_LEFT - 6, y(value));
    }
    context.globalAlpha = 1;
    context.save();
    for (const line of lines) {
      context.beginPath();
      context.strokeStyle = line.colour;
      context.lineWidth = 1.6;
      for (const [time, value] of line.points) context.lineTo(x(time), y(value)); // the first one moves
      if (line.points.length === 1) context.arc(x(line.points[0][0]), y(line.points[0][1]), 2, 0, 7);
      context.stroke();
      line.y = y;
    }
    context.restore();
    context.save();
    context.textAlign = "left";
    context.font = `bold ${context.font}`;
    context.fillText(name, CHART_LEFT, top - 10);
    context.restore();
  }

  drawTimes(context, { from, to, x, width, height }) {
    context.textAlign = "center";
    context.globalAlpha = 0.8;
    // No two labels are equal: there is one for each second at most.
    const count = Math.max(1, Math.min(width < 420 ? 1 : 3, Math.floor(to - from)));
    let last = "";
    for (let index = 0; index <= count; index++) {
      const time = from + ((to - from) * index) / count;
      if (timeText(time) === last) continue;
      last = timeText(time);
      const left = Math.min(Math.max(x(time), CHART_LEFT + 26), width - 38);
      context.fillText(last, left, height - 10);
    }
    context.globalAlpha = 1;
  }

  // Mark the samples that are nearest to the pointer's time, and list their values beside it.
  drawPointer(context, lines, { time, margin, x, width, height }) {
    const found = lines.map((line) => ({ line, point: nearestPoint(line.points, time) }));
    const near = found.filter(({ point }) => Math.abs(point[0] - time) <= margin);
    if (!near.length) return;
    context.globalAlpha = 0.5;
    context.fillRect(Math.round(x(time)), 0, 1, height - TIME_AXIS_HEIGHT);
    context.globalAlpha = 1;
    for (const { line, point } of near) {
      context.beginPath();
      context.fillStyle = line.colour;
      context.arc(x(point[0]), line.y(point[1]), 3, 0, 7);
      context.fill();
    }
    this.tip.replaceChildren(el("b", {}, timeText(time)), ...near.map(({ line, point }) => this.tipLine(line, point[1])));
    this.tip.hidden = false;
    const left = x(time) + 12, tipWidth = this.tip.offsetWidth;
    this.tip.style.left = `${left + tipWidth > width ? Math.max(x(time) - 12 - tipWidth, 0) : left}px`;
    this.tip.style.top = `${Math.max(Math.min(this.pointer.y, height - this.tip.offsetHeight), 0)}px`;
  }

  tipLine(line, value) {
    const mark = el("i", {});
    mark.style.background = line.colour;
    return el("div", {}, mark, `${line.label}  ${numberText(value)}`);
  }

  dispose() {
    this.resizeObserver.disconnect();
  }
}

const numberText = (value) => String(+value.toPrecision(6));

// Return a time of day, with the date if it was not in the last day.
function timeText(time) {
  const moment = new Date(time * 1000), clock = moment.toLocaleTimeString([], { hour12: false });
  if (Date.now() - moment < DAY_MS) return clock;
  return `${moment.toLocaleDateString([], { day: "numeric", month: "short" })} ${clock}`;
}

// Return the point whose time is nearest; `points` are in order of time, and there is at least one.
function nearestPoint(points, time) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < time) low = middle + 1;
    else high = middle;
  }
  const before = points[Math.max(low - 1, 0)], after = points[low];
  return time - before[0] <= after[0] - time ? before : after;
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
    this.banner = new Banner(model.get("lost_text"));
    this.node = el("div", { class: "cm-fleet" }, this.banner.node, this.chart.node);
    this.chart.draw();
  }

  onMessage({ kind, samples, note, reason }) {
    if (kind === "samples") {
      this.chart.note = note;
      this.chart.add(samples);
    }
    if (kind === "samples" || kind === "lost") this.update({ serverLost: reason ?? "" });
  }

  update(state) {
    this.chart.node.classList.toggle("cm-stale", this.banner.update(state));
  }

  setConnected(isConnected) {
    this.update({ kernelLost: !isConnected });
  }

  setWaiting() {} // the user does nothing here that the kernel must know

  dispose() {
    this.chart.dispose();
  }
}

// A page looks once a second whether messages are late. It counts these checks instead of seconds, since a page
// that the browser has stopped for a while, or that is slow, does not get messages either.
const CHECK_MS = 1000;
const LOST_CHECKS = 7; // without any message: the kernel is gone; it sends one every 2 s (live_widget.py)
const RESEND_CHECKS = [2, 4, 8]; // without a confirmation: messages are sent again; more would fill a busy kernel's queue

const OWN_MESSAGES = ["open", "ping"]; // that the page sends by itself

// Numbers the messages to the kernel and sends those again that it does not confirm: a message may get lost on
// its way, between two WebSockets or in a kernel that does not notice it. The kernel handles each of them once,
// and in order (_is_next in live_widget.py).
class Outbox {
  constructor(transmit) {
    this.transmit = transmit;
    this.unconfirmed = []; // [message, buffers], by sequence number
    this.nextSeq = 0;
    this.checks = 0; // since a message was sent or confirmed
  }

  send(content, buffers) {
    const message = { ...content, seq: this.nextSeq++ };
    this.unconfirmed.push([message, buffers]);
    this.checks = 0;
    this.transmit(message, buffers);
  }

  // Forget what has been received: the kernel expects the message `next` now.
  confirm(next) {
    this.unconfirmed = this.unconfirmed.filter(([{ seq }]) => seq >= next);
    this.checks = 0;
  }

  // Send messages again that have not been confirmed in time; return whether any of them is the user's.
  check() {
    if (!this.unconfirmed.length) return false;
    this.checks += 1;
    if (RESEND_CHECKS.includes(this.checks)) {
      for (const [message, buffers] of this.unconfirmed) this.transmit(message, buffers);
    }
    return this.checks >= RESEND_CHECKS[0] && this.unconfirmed.some(([message]) => !OWN_MESSAGES.includes(message.do));
  }
}

// Return an anywidget module whose `render` shows a `View` and passes it the widget's messages.
function show(View) {
  return {
    render({ model, el: container }) {
      const id = Math.random().toString(36).slice(2);
      const outbox = new Outbox((message, buffers) => {
        try {
          model.send({ ...message, view: id }, undefined, buffers);
        } catch {
          view.setConnected(false); // the comm is closed: the kernel was restarted
        }
      });
      const view = new View(model, (message, buffers) => outbox.send(message, buffers));
      let silentChecks = 0;
      const check = () => {
        view.setWaiting(outbox.check());
        silentChecks += 1;
        if (silentChecks >= LOST_CHECKS) view.setConnected(false);
      };
      const listener = (message, buffers) => {
        silentChecks = 0;
        view.node.classList.add("cm-live"); // see saved_output.py
        view.setConnected(true);
        if (message.kind !== "received") view.onMessage(message, buffers);
        else if (message.view === id) outbox.confirm(message.next);
      };
      model.on("msg:custom", listener);
      container.append(view.node);
      outbox.send({ do: "open" });
      // JupyterLab sends this one through a subshell, unlike the first: see live_widget.py.
      const ping = setTimeout(() => outbox.send({ do: "ping" }), 1000);
      const timer = setInterval(check, CHECK_MS);
      return () => {
        clearTimeout(ping);
        clearInterval(timer);
        model.off("msg:custom", listener);
        outbox.send({ do: "close" });
        view.dispose();
      };
    },
  };
}
