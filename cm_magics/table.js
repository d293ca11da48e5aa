// The live table of boards: sorted, filtered, chosen from. Behind plot.js in one module.

const ROW = 28; // px: a row's height, as in dashboard.css
const SPARE = 8; // rows that are drawn above and below those in sight
const FEWEST = 4; // rows that the table has room for, as many as there are boards; a person may pull it
const MOST = 12;

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
  if (!row.job) return row.queued ? `${row.queued} queued` : row.online ? row.program : "";
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
    this.draw = onFrame(() => this.drawNow());
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
