// The fleet as a live table, and a page for each board. Behind plot.js in one module.

const ROW = 28; // px: a row's height, as in dashboard.css
const SPARE = 8; // rows that are drawn above and below those in sight
const FEWEST = 4; // rows that the table has room for, as many as there are boards; a person may pull it
const MOST = 12;
const collator = new Intl.Collator("en", { numeric: true });

// How people say it

function span(seconds) {
  if (!isNumber(seconds)) return "";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

const kilobytes = (bytes) => (isNumber(bytes) ? `${(bytes / 1024).toFixed(1)} KB` : "");
const ago = (seconds) => (isNumber(seconds) ? `${span(seconds)} ago` : "never");

function doing(row, now) {
  if (!row.job) return row.queued ? `${row.queued} queued` : "";
  const spent = isNumber(row.job.started) ? `, ${span(now - row.job.started)}` : "";
  const more = row.queued ? `, ${row.queued} queued` : "";
  return `job ${row.job.job} for ${row.job.caller}${spent}${more}`;
}

// The columns: `text` is shown, `order` is sorted by.
const STATES = ["busy", "idle", "lost", "offline"];
const COLUMNS = [
  { key: "name", title: "Name", text: (row) => row.name, order: (row) => row.rank },
  { key: "state", title: "State", text: (row) => row.state, order: (row) => STATES.indexOf(row.state) },
  { key: "platform", title: "Platform", text: (row) => row.platform },
  { key: "version", title: "Version", text: (row) => row.version },
  { key: "heap", title: "Free heap", text: (row) => kilobytes(row.heap), order: (row) => row.heap },
  { key: "rssi", title: "RSSI", text: (row) => (isNumber(row.rssi) ? `${row.rssi} dBm` : ""), order: (row) => row.rssi },
  {
    key: "uptime",
    title: "Uptime",
    text: (row, now) => (row.online && isNumber(row.booted) ? span(now - row.booted) : ""),
    order: (row) => (row.online ? -row.booted : undefined),
  },
  { key: "job", title: "Runs", text: doing, order: (row) => row.job?.started },
  {
    key: "seen",
    title: "Last seen",
    text: (row, now) => (row.online ? "now" : ago(isNumber(row.seen) ? now - row.seen : null)),
    order: (row) => (row.online ? -Infinity : -row.seen),
  },
];

function compare(column, turn) {
  const order = column.order ?? column.text;
  return (one, two) => {
    const a = order(one), b = order(two);
    const missing = (a == null || a === "") - (b == null || b === "");
    if (missing) return missing; // what has no value comes last, either way
    const by = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a ?? "", b ?? "");
    return (by || 0) * turn || one.rank - two.rank;
  };
}

// A table of any number of rows, of which only those in sight are in the page.
class Table {
  constructor(open, changed) {
    this.rows = new Map(); // name -> row
    this.shown = null; // the names that the filter leaves; null: all
    this.chosen = new Set();
    this.cursor = null; // the name that the keyboard is at
    this.anchor = null; // where a range began
    this.sort = { column: COLUMNS[0], turn: 1 };
    this.skew = 0; // seconds that the server's clock is ahead of this one
    this.list = []; // what is shown, in order
    this.stale = true; // whether the list has to be made anew
    this.open = open;
    this.changed = changed;
    this.pool = [];
    this.id = `cm-${Math.random().toString(36).slice(2)}`;
    this.head = el("div", { class: "cm-head", role: "row" }, el("span", { role: "columnheader" }));
    for (const column of COLUMNS) this.head.append(this.header(column));
    this.space = el("div", { class: "cm-space" });
    this.empty = el("div", { class: "cm-empty" });
    this.body = el("div", { class: "cm-body", role: "presentation" }, this.empty, this.space);
    this.node = el(
      "div",
      { class: "cm-table", role: "grid", tabindex: "0", "aria-multiselectable": "true", "aria-label": "Boards" },
      this.head,
      this.body,
    );
    this.node.addEventListener("keydown", (event) => this.onKey(event));
    this.space.addEventListener("click", (event) => this.onClick(event));
    this.space.addEventListener("dblclick", (event) => this.open(this.nameAt(event)));
    this.body.addEventListener("scroll", () => this.draw());
  }

  header(column) {
    const node = el("span", { role: "columnheader", class: `cm-${column.key}` });
    node.append(button(column.title, () => this.sortBy(column), { tabindex: "-1" }));
    column.header = column.key;
    return node;
  }

  sortBy(column) {
    this.sort = { column, turn: this.sort.column === column ? -this.sort.turn : 1 };
    this.refresh();
  }

  refresh() {
    this.stale = true;
    this.draw();
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.drawNow();
    });
  }

  arrange() {
    this.stale = false;
    this.list = [...this.rows.values()].filter((row) => !this.shown || this.shown.has(row.name));
    this.list.sort(compare(this.sort.column, this.sort.turn));
    this.place = new Map(this.list.map((row, at) => [row.name, at]));
    COLUMNS.forEach((column, at) => {
      const turn = column === this.sort.column ? (this.sort.turn > 0 ? "ascending" : "descending") : "none";
      this.head.children[at + 1].setAttribute("aria-sort", turn);
    });
    this.node.setAttribute("aria-rowcount", String(this.list.length));
    this.space.style.height = `${this.list.length * ROW}px`;
    this.empty.hidden = this.list.length > 0;
    setText(this.empty, this.rows.size ? "No board matches." : "No board is enrolled yet.");
    const room = Math.min(Math.max(this.rows.size, FEWEST), MOST);
    if (room !== this.room) this.body.style.height = `${room * ROW}px`;
    this.room = room;
    this.changed();
  }

  drawNow() {
    if (this.stale) this.arrange();
    const now = Date.now() / 1000 + this.skew;
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - SPARE);
    const count = Math.ceil(this.body.clientHeight / ROW) + 2 * SPARE;
    const rows = this.list.slice(first, first + count);
    while (this.pool.length < rows.length) this.pool.push(this.newRow());
    this.pool.forEach((node, at) => this.fill(node, rows[at], first + at, now));
  }

  newRow() {
    const node = el("div", { class: "cm-row", role: "row" });
    node.append(el("span", { role: "gridcell", class: "cm-check" }));
    for (const column of COLUMNS) node.append(el("span", { role: "gridcell", class: `cm-${column.key}` }));
    this.space.append(node);
    return node;
  }

  fill(node, row, at, now) {
    node.hidden = !row;
    if (!row) return;
    node.style.transform = `translateY(${at * ROW}px)`;
    node.row = row;
    node.id = `${this.id}-${at}`;
    node.dataset.state = STATES.includes(row.state) ? row.state : "";
    node.setAttribute("aria-rowindex", String(at + 1));
    node.setAttribute("aria-selected", String(this.chosen.has(row.name)));
    const here = row.name === this.cursor;
    node.classList.toggle("cm-cursor", here);
    if (here) this.node.setAttribute("aria-activedescendant", node.id);
    COLUMNS.forEach((column, index) => {
      const cell = node.children[index + 1], text = String(column.text(row, now) ?? "");
      if (cell.textContent !== text) cell.textContent = cell.title = text;
    });
  }

  nameAt(event) {
    return event.target.closest(".cm-row")?.row?.name;
  }

  onClick(event) {
    const name = this.nameAt(event);
    if (name === undefined) return;
    const box = event.target.classList.contains("cm-check");
    if (event.shiftKey) this.range(name);
    else if (box || event.ctrlKey || event.metaKey) this.toggle(name);
    else this.only(name);
    this.moveTo(name, event.shiftKey);
  }

  range(name) {
    const from = this.place.get(this.anchor ?? name) ?? 0, to = this.place.get(name);
    const [low, high] = from < to ? [from, to] : [to, from];
    this.chosen = new Set(this.list.slice(low, high + 1).map((row) => row.name));
  }

  toggle(name) {
    if (!this.chosen.delete(name)) this.chosen.add(name);
  }

  only(name) {
    this.chosen = new Set([name]);
  }

  moveTo(name, keep = false) {
    this.cursor = name;
    if (!keep) this.anchor = name;
    const top = this.place.get(name) * ROW, bottom = top + ROW;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    if (bottom > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = bottom - this.body.clientHeight;
    this.changed();
    this.draw();
  }

  onKey(event) {
    if (event.target !== this.node && event.key !== "Escape") return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const at = this.place?.get(this.cursor);
    if (event.key in steps && !this.list.length) {
      event.preventDefault();
    } else if (event.key in steps) {
      const to = Math.min(Math.max((at ?? -1) + steps[event.key], 0), this.list.length - 1);
      if (event.shiftKey) this.range(this.list[to].name);
      this.moveTo(this.list[to].name, event.shiftKey);
    } else if (event.key === " " && at !== undefined) {
      this.toggle(this.cursor);
      this.moveTo(this.cursor);
    } else if (event.key === "Enter" && at !== undefined) {
      this.open(this.cursor);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      this.chosen = new Set(this.list.map((row) => row.name));
      this.changed();
      this.draw();
    } else {
      return;
    }
    event.preventDefault();
  }

  take({ rows, gone, whole, now }) {
    const known = this.rows.size;
    if (whole) this.rows.clear();
    for (const name of gone) this.rows.delete(name);
    for (const row of rows) {
      const old = this.rows.get(row.name);
      if (old) Object.assign(old, row); // in its place: a list of a thousand names is not sorted anew
      else this.rows.set(row.name, row);
    }
    for (const name of this.chosen) if (!this.rows.has(name)) this.chosen.delete(name);
    this.skew = now - Date.now() / 1000;
    const others = whole || gone.length > 0 || this.rows.size !== known;
    if (others) this.number();
    if (others || this.sort.column !== COLUMNS[0]) this.stale = true;
    else this.changed();
    this.draw();
  }

  number() {
    const names = [...this.rows.keys()].sort(collator.compare);
    names.forEach((name, rank) => (this.rows.get(name).rank = rank));
  }

  names() {
    return this.list.filter((row) => this.chosen.has(row.name)).map((row) => row.name);
  }
}

// What is below the table: what an action said, a board's page, or a job.
class Pane {
  constructor(ask) {
    this.ask = ask;
    this.title = el("h3", {});
    this.content = el("div", { class: "cm-content", tabindex: "0" });
    this.node = el(
      "section",
      { class: "cm-pane", "aria-live": "polite" },
      el("header", {}, this.title, button("Close", () => this.close(), { class: "cm-close" })),
      this.content,
    );
    this.node.hidden = true;
    this.chart = new Chart();
  }

  close() {
    this.node.hidden = true;
    this.board = null;
    this.ask({ do: "page", board: null });
  }

  say({ title, text, state }) {
    this.board = null;
    setText(this.title, title);
    const focused = this.node.contains(document.activeElement);
    this.content.replaceChildren(el("pre", { "data-state": state }, text));
    this.node.hidden = false;
    if (focused) this.content.focus({ preventScroll: true });
  }

  page({ board, sections, samples }) {
    const same = this.board === board;
    this.board = board;
    setText(this.title, board);
    this.node.hidden = false;
    if (!same) this.chart.clear();
    this.chart.add(samples);
    const { scrollTop } = this.content;
    this.content.replaceChildren(...sections.map((section) => this.section(section)), this.plotted());
    if (same) this.content.scrollTop = scrollTop;
    else this.content.focus({ preventScroll: true });
  }

  section({ title, pairs, jobs, text }) {
    const node = el("div", { class: "cm-section" }, el("h4", {}, title));
    if (pairs) {
      const list = el("dl", {});
      for (const [name, value] of pairs) list.append(el("dt", {}, name), el("dd", {}, value));
      node.append(list);
    }
    if (text !== undefined) node.append(el("pre", {}, text));
    for (const { number, line } of jobs ?? []) {
      node.append(button(line, () => this.ask({ do: "job", number }), { class: "cm-job" }));
    }
    return node;
  }

  plotted() {
    return el("div", { class: "cm-section cm-wide" }, el("h4", {}, "Emitted values"), this.chart.node);
  }
}

// The whole of it.
class Dashboard {
  constructor(model) {
    this.model = model;
    this.ask = (message) => model.send(message);
    this.pane = new Pane(this.ask);
    this.table = new Table((name) => name && this.ask({ do: "page", board: name }), () => this.count());
    this.filter = el("input", {
      type: "text", spellcheck: "false", "aria-label": "Target", placeholder: "All boards, or a target: lab-*, room=north, state=busy",
    });
    this.filter.value = model.get("begins");
    this.filter.addEventListener("input", () => this.onFilter());
    this.complaint = el("span", { class: "cm-complaint", role: "status" });
    this.counted = el("span", { class: "cm-count", role: "status" });
    this.lost = el("div", { class: "cm-lost", role: "alert" });
    this.lost.hidden = true;
    this.buttons = model.get("actions").map((action) =>
      button(action.title, () => this.act(action), { "data-action": action.name }),
    );
    this.prompt = el("form", { class: "cm-prompt" });
    this.prompt.hidden = true;
    this.node = el(
      "div",
      { class: "cm-fleet", "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "cm-bar" }, this.filter, this.counted),
      this.complaint,
      this.lost,
      el("div", { class: "cm-bar", role: "toolbar", "aria-label": "With the selected boards" }, ...this.buttons),
      this.prompt,
      this.table.node,
      this.pane.node,
    );
    this.node.addEventListener("keydown", (event) => this.onKey(event));
    this.clock = setInterval(() => this.table.draw(), 1000);
    this.count();
  }

  onKey(event) {
    event.stopPropagation(); // a notebook has shortcuts of its own
    if (event.key !== "Escape") return;
    if (!this.prompt.hidden) this.prompt.hidden = true;
    else if (!this.pane.node.hidden) this.pane.close();
    this.table.node.focus({ preventScroll: true });
  }

  onFilter() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.ask({ do: "filter", text: this.filter.value }), 120);
  }

  count() {
    const rows = [...this.table.rows.values()], chosen = this.table.names().length;
    const states = STATES.map((state) => [rows.filter((row) => row.state === state).length, state]);
    const told = states.filter(([count]) => count).map(([count, state]) => `${count.toLocaleString("en")} ${state}`);
    const some = this.table.shown ? `${this.table.list.length.toLocaleString("en")} of ` : "";
    const boards = `${some}${rows.length.toLocaleString("en")} ${rows.length === 1 ? "board" : "boards"}`;
    setText(this.counted, [boards, ...told, `${chosen.toLocaleString("en")} selected`].join(" · "));
    for (const node of this.buttons) node.disabled = !chosen;
  }

  act(action) {
    if (!action.prompt) {
      this.perform(action, "");
      return;
    }
    const field = el(action.lines > 1 ? "textarea" : "input", {
      placeholder: action.prompt, rows: String(action.lines), spellcheck: "false", "aria-label": action.prompt,
    });
    const go = el("button", { type: "submit" }, action.title);
    const hint = action.lines > 1 ? "Ctrl+Enter" : "Enter";
    this.prompt.replaceChildren(field, go, el("span", { class: "cm-hint" }, hint));
    this.prompt.onsubmit = (event) => {
      event.preventDefault();
      this.prompt.hidden = true;
      this.perform(action, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.prompt.requestSubmit();
    });
    this.prompt.hidden = false;
    field.focus();
  }

  perform(action, text) {
    this.ask({ do: "act", action: action.name, boards: this.table.names(), text });
    this.table.node.focus({ preventScroll: true });
  }

  take(message) {
    const { kind } = message;
    if (kind === "boards") {
      this.lose("");
      this.table.take(message);
    } else if (kind === "shown") {
      this.table.shown = message.names && new Set(message.names);
      setText(this.complaint, message.error);
      this.table.refresh();
    } else if (kind === "lost") {
      this.lose(message.why);
    } else if (kind === "say") {
      this.pane.say(message);
    } else if (kind === "page") {
      this.pane.page(message);
    } else if (kind === "samples" && message.board === this.pane.board) {
      this.pane.chart.add(message.samples);
    }
  }

  lose(why) {
    this.lost.hidden = !why;
    setText(this.lost, why);
    this.table.node.classList.toggle("cm-stale", Boolean(why));
  }

  end() {
    clearInterval(this.clock);
    this.pane.chart.end();
  }
}
