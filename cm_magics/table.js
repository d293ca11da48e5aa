// The live table of boards: sorting, filtering, selecting. Concatenated after plot.js.

const ROW_HEIGHT = 28; // px, as in dashboard.css
const EXTRA_ROWS = 8; // rows that are drawn above and below the visible ones
// Rows that fit in the table: as many as there are boards, within these bounds; the user can resize it.
const MIN_VISIBLE_ROWS = 4;
const MAX_VISIBLE_ROWS = 12;

// Formatting

function durationText(seconds) {
  if (!isNumber(seconds)) return "";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

const ago = (seconds) => (isNumber(seconds) ? `${durationText(seconds)} ago` : "never");

// Return what a board runs: a job, or else its own program.
function activity(row, now) {
  if (!row.job) return row.queued ? `${row.queued} queued` : row.online ? row.program : row.sleeps;
  const elapsed = isNumber(row.job.started) ? `, ${durationText(now - row.job.started)}` : "";
  const queued = row.queued ? `, ${row.queued} queued` : "";
  return `job ${row.job.job} for ${row.job.caller}${elapsed}${queued}`;
}

// The columns: `text` returns what is shown, `order` what is sorted by (default: `text`), `width` and
// `grow` are the least width in pixels and the share of the space that is left. Those with `extra` are
// hidden until the user chooses them; the others fit in 1,018 px: a notebook in a window of 1,200 px.
const STATES = ["busy", "idle", "asleep", "overdue", "lost", "offline"];
const FIRST_COLUMNS = [
  { key: "name", title: "Name", width: 136, grow: 1.2, text: (row) => row.name, order: (row) => row.rank },
  { key: "state", title: "State", width: 80, text: (row) => row.state, order: (row) => STATES.indexOf(row.state) },
  { key: "labels", title: "Labels", width: 100, grow: 1, text: (row) => row.labels },
];
const LAST_COLUMNS = [
  {
    key: "uptime",
    title: "Uptime",
    width: 76,
    isNumber: true,
    text: (row, now) => (row.online && isNumber(row.booted) ? durationText(now - row.booted) : ""),
    order: (row) => (row.online ? -row.booted : undefined),
  },
  { key: "job", title: "Runs", width: 144, grow: 1.6, text: activity, order: (row) => row.job?.started },
  {
    key: "seen",
    title: "Last seen",
    width: 88,
    text: (row, now) => (row.online ? "now" : ago(isNumber(row.seen) ? now - row.seen : null)),
    order: (row) => (row.online ? -Infinity : -row.seen),
  },
];

// Return the column of a fact. A row has the fact's text, and what it is sorted by.
function factColumn([name, heading, isNumber, isExtra]) {
  return {
    key: `fact-${name}`,
    title: heading.charAt(0).toUpperCase() + heading.slice(1),
    width: Math.max(72, 8 * heading.length + 16), // the heading fits
    grow: 0.6,
    isNumber,
    extra: isExtra,
    text: (row) => row.facts[name]?.[0],
    order: (row) => row.facts[name]?.[1],
  };
}

const columnClass = (column) => `cm-${column.key}${column.isNumber ? " cm-number" : ""}`;
const CHECKBOX_WIDTH = 28; // px, of the first column
const COLUMNS_KEY = "cloudmanager-columns"; // of the browser's storage: the keys that the user chose

// Return the keys of the columns that are shown: those that the user chose in this browser, or the usual ones.
function storedColumns(columns) {
  let keys = null;
  try {
    keys = JSON.parse(localStorage.getItem(COLUMNS_KEY));
  } catch {
    // No storage, or not JSON.
  }
  const usual = columns.filter((column) => !column.extra).map((column) => column.key);
  return new Set(Array.isArray(keys) ? ["name", ...keys] : usual);
}

function storeColumns(keys) {
  try {
    localStorage.setItem(COLUMNS_KEY, JSON.stringify([...keys]));
  } catch {
    // The choice holds until the page is closed.
  }
}

// Return the comparison function of a column; `direction` is 1 (ascending) or -1.
function compare(column, direction) {
  const order = column.order ?? column.text;
  return (rowA, rowB) => {
    const a = order(rowA), b = order(rowB);
    const missing = (a == null || a === "") - (b == null || b === "");
    if (missing) return missing; // rows without a value come last in both directions
    const difference = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a ?? "", b ?? "");
    return (difference || 0) * direction || rowA.rank - rowB.rank;
  };
}

// A table of any number of rows, of which only the visible ones are in the page.
class Table {
  // `open` is called with the name of a board; `onChange` when the rows or the selection changed;
  // `facts` are the facts that are columns: name, heading, whether they are numbers, whether extra.
  constructor(open, onChange, facts) {
    this.allColumns = [...FIRST_COLUMNS, ...facts.map(factColumn), ...LAST_COLUMNS];
    this.rows = new Map(); // id of the board, which a rename does not change -> row
    this.filtered = null; // the names that the filter selects; null: all
    this.selected = new Set(); // ids
    this.cursor = null; // the id of the row that the keyboard moves from
    this.anchor = null; // the id of the row where a range selection began
    this.shownKeys = storedColumns(this.allColumns);
    this.sort = { column: this.allColumns[0], direction: 1 };
    this.clockOffset = 0; // seconds that the server's clock is ahead of this computer's
    this.list = []; // the rows that are shown, in order
    this.stale = true; // whether the list must be rebuilt
    this.open = open;
    this.onChange = onChange;
    this.pool = []; // the nodes of the visible rows, which are reused
    this.draw = oncePerFrame(() => this.drawNow());
    this.id = `cm-${Math.random().toString(36).slice(2)}`;
    this.head = el("div", { class: "cm-head", role: "row" });
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
    this.space.addEventListener("dblclick", (event) => this.open(this.rowAt(event)?.name));
    this.body.addEventListener("scroll", () => this.draw());
    this.buildColumns();
  }

  showColumn(key, isShown) {
    if (isShown) this.shownKeys.add(key);
    else this.shownKeys.delete(key);
    storeColumns(this.shownKeys);
    this.buildColumns();
    this.refresh();
  }

  // Create the headings of the columns that are shown; the nodes of the rows follow when they are drawn.
  buildColumns() {
    this.columns = this.allColumns.filter((column) => this.shownKeys.has(column.key));
    if (!this.columns.includes(this.sort.column)) this.sort = { column: this.columns[0], direction: 1 };
    this.head.replaceChildren(el("span", { role: "columnheader" }), ...this.columns.map((column) => this.header(column)));
    for (const node of this.pool.splice(0)) node.remove();
    const widths = this.columns.map(({ width, grow }) => (grow ? `minmax(${width}px, ${grow}fr)` : `${width}px`));
    const least = this.columns.reduce((sum, column) => sum + column.width, CHECKBOX_WIDTH);
    this.node.style.setProperty("--cm-columns", `${CHECKBOX_WIDTH}px ${widths.join(" ")}`);
    this.node.style.setProperty("--cm-least-width", `${least}px`);
  }

  header(column) {
    const node = el("span", { role: "columnheader", class: columnClass(column) });
    node.append(button(column.title, () => this.sortBy(column), { tabindex: "-1" }));
    return node;
  }

  sortBy(column) {
    this.sort = { column, direction: this.sort.column === column ? -this.sort.direction : 1 };
    this.refresh();
  }

  refresh() {
    this.stale = true;
    this.draw();
  }

  rebuildList() {
    this.stale = false;
    this.list = [...this.rows.values()].filter((row) => !this.filtered || this.filtered.has(row.name));
    this.list.sort(compare(this.sort.column, this.sort.direction));
    this.indexes = new Map(this.list.map((row, index) => [row.id, index])); // id -> index in the list
    this.columns.forEach((column, index) => {
      const direction = this.sort.direction > 0 ? "ascending" : "descending";
      this.head.children[index + 1].setAttribute("aria-sort", column === this.sort.column ? direction : "none");
    });
    this.node.setAttribute("aria-rowcount", String(this.list.length));
    this.space.style.height = `${this.list.length * ROW_HEIGHT}px`;
    this.empty.hidden = this.list.length > 0;
    setText(this.empty, this.rows.size ? "No board matches." : "No board is enrolled yet.");
    const visibleRows = Math.min(Math.max(this.rows.size, MIN_VISIBLE_ROWS), MAX_VISIBLE_ROWS);
    if (visibleRows !== this.visibleRows) this.body.style.height = `${visibleRows * ROW_HEIGHT}px`;
    this.visibleRows = visibleRows;
    this.onChange();
  }

  drawNow() {
    if (this.stale) this.rebuildList();
    this.head.style.paddingRight = `${this.body.offsetWidth - this.body.clientWidth}px`; // above the scroll bar
    const now = Date.now() / 1000 + this.clockOffset;
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW_HEIGHT) - EXTRA_ROWS);
    const count = Math.ceil(this.body.clientHeight / ROW_HEIGHT) + 2 * EXTRA_ROWS;
    const rows = this.list.slice(first, first + count);
    while (this.pool.length < rows.length) this.pool.push(this.newRow());
    this.pool.forEach((node, index) => this.fill(node, rows[index], first + index, now));
  }

  newRow() {
    const node = el("div", { class: "cm-row", role: "row" });
    node.append(el("span", { role: "gridcell", class: "cm-check" }));
    for (const column of this.columns) node.append(el("span", { role: "gridcell", class: columnClass(column) }));
    this.space.append(node);
    return node;
  }

  // Show `row`, which has this index in the list, in a node of the pool; without a row, hide the node.
  fill(node, row, rowIndex, now) {
    node.hidden = !row;
    if (!row) return;
    node.style.transform = `translateY(${rowIndex * ROW_HEIGHT}px)`;
    node.row = row;
    node.id = `${this.id}-${rowIndex}`;
    node.dataset.state = STATES.includes(row.state) ? row.state : "";
    node.setAttribute("aria-rowindex", String(rowIndex + 1));
    node.setAttribute("aria-selected", String(this.selected.has(row.id)));
    const isCursor = row.id === this.cursor;
    node.classList.toggle("cm-cursor", isCursor);
    if (isCursor) this.node.setAttribute("aria-activedescendant", node.id);
    this.columns.forEach((column, index) => {
      const cell = node.children[index + 1], text = String(column.text(row, now) ?? "");
      if (cell.textContent !== text) cell.textContent = cell.title = text;
    });
  }

  rowAt(event) {
    return event.target.closest?.(".cm-row")?.row;
  }

  onClick(event) {
    const row = this.rowAt(event);
    if (!row) return;
    const isCheckbox = event.target.classList.contains("cm-check");
    if (event.shiftKey) this.selectRange(row.id);
    else if (isCheckbox || event.ctrlKey || event.metaKey) this.toggle(row.id);
    else this.selectOnly(row.id);
    this.moveTo(row.id, event.shiftKey);
  }

  // Select the rows from the anchor to this one.
  selectRange(id) {
    const from = this.indexes.get(this.anchor ?? id) ?? 0, to = this.indexes.get(id);
    const [low, high] = from < to ? [from, to] : [to, from];
    this.selected = new Set(this.list.slice(low, high + 1).map((row) => row.id));
  }

  toggle(id) {
    if (!this.selected.delete(id)) this.selected.add(id);
  }

  selectOnly(id) {
    this.selected = new Set([id]);
  }

  // Move the cursor to a row and scroll it into view.
  moveTo(id, keepAnchor = false) {
    this.cursor = id;
    if (!keepAnchor) this.anchor = id;
    const top = this.indexes.get(id) * ROW_HEIGHT, bottom = top + ROW_HEIGHT;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    if (bottom > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = bottom - this.body.clientHeight;
    this.onChange();
    this.draw();
  }

  onKey(event) {
    if (event.target !== this.node && event.key !== "Escape") return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW_HEIGHT) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const from = this.indexes?.get(this.cursor);
    if (event.key in steps && !this.list.length) {
      event.preventDefault();
    } else if (event.key in steps) {
      const to = Math.min(Math.max((from ?? -1) + steps[event.key], 0), this.list.length - 1);
      if (event.shiftKey) this.selectRange(this.list[to].id);
      this.moveTo(this.list[to].id, event.shiftKey);
    } else if (event.key === " " && from !== undefined) {
      this.toggle(this.cursor);
      this.moveTo(this.cursor);
    } else if (event.key === "Enter" && from !== undefined) {
      this.open(this.list[from].name);
    } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      this.selected = new Set(this.list.map((row) => row.id));
      this.onChange();
      this.draw();
    } else {
      return;
    }
    event.preventDefault();
  }

  // Apply changes; a snapshot contains all boards and replaces the rows.
  update({ rows, gone, is_snapshot: isSnapshot, now }) {
    const goneNames = new Set(gone);
    let namesChanged = isSnapshot || gone.length > 0;
    for (const row of isSnapshot || gone.length ? [...this.rows.values()] : []) {
      if (isSnapshot || goneNames.has(row.name)) this.rows.delete(row.id);
    }
    for (const row of rows) {
      const old = this.rows.get(row.id);
      namesChanged ||= old?.name !== row.name;
      if (old) Object.assign(old, row); // in place, so that 1,000 names need not be sorted again
      else this.rows.set(row.id, row);
    }
    this.clockOffset = now - Date.now() / 1000;
    if (namesChanged) this.rankNames();
    if (namesChanged || this.sort.column !== this.allColumns[0]) this.stale = true;
    else this.onChange();
    this.draw();
  }

  // Store each row's position in the order of names, which decides between equal rows.
  rankNames() {
    const rows = [...this.rows.values()].sort((a, b) => collator.compare(a.name, b.name));
    rows.forEach((row, rank) => (row.rank = rank));
  }

  // Return the selected names that the filter shows, in the order of the table.
  selectedNames() {
    return this.list.filter((row) => this.selected.has(row.id)).map((row) => row.name);
  }
}
