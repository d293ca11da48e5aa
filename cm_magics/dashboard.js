// The dashboard: the live table, actions for the selected boards, and a page for each board.
// Concatenated after table.js.

// The area below the table: the outcome of an action, or a board's page.
class Pane {
  constructor(send) {
    this.send = send; // sends a message to Python
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
    this.sectionNodes = new Map(); // title of a section -> the node of its content
    this.openJobs = new Map(); // number of each job whose output is shown -> the output
  }

  close() {
    this.node.hidden = true;
    this.board = null;
    this.send({ do: "page", board: null });
  }

  // Show the progress or the outcome of an action.
  showAction({ title, text, state }) {
    this.board = null;
    setText(this.title, title);
    const focused = this.node.contains(document.activeElement);
    this.content.replaceChildren(el("pre", { "data-state": state }, text));
    this.node.hidden = false;
    if (focused) this.content.focus({ preventScroll: true });
  }

  // Show a board's page, or update it if it is open already.
  showPage({ board, sections, samples }) {
    if (this.board !== board) this.openPage(board, sections);
    for (const section of sections) if (!section.on_demand) this.fillSection(section);
    this.chart.add(samples);
  }

  openPage(board, sections) {
    this.board = board;
    this.openJobs.clear();
    this.sectionNodes.clear();
    this.chart.clear();
    setText(this.title, board);
    this.content.replaceChildren(...sections.map((section) => this.newSection(section)), this.newChartSection());
    this.node.hidden = false;
    this.content.scrollTop = 0;
    this.content.focus({ preventScroll: true });
  }

  // Return the nodes of an empty section; one on demand has a button that requests its content.
  newSection({ title, on_demand: onDemand }) {
    const content = el("div", {}), heading = el("h4", {}, title);
    if (onDemand) {
      const label = { "aria-label": `${title} of this board` };
      heading.append(button("Show", (event) => this.requestSection(title, event.target), label));
    }
    this.sectionNodes.set(title, content);
    return el("div", { class: "cm-section" }, heading, content);
  }

  requestSection(title, showButton) {
    setText(showButton, "Refresh");
    this.fillSection({ title, text: "Loading … (a busy board answers when it is idle)" });
    this.send({ do: "section", board: this.board, title });
  }

  fillSection({ title, pairs, jobs, text }) {
    const nodes = [];
    if (pairs) nodes.push(el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    for (const job of jobs ?? []) nodes.push(...this.newJob(job));
    if (text !== undefined) nodes.push(el("pre", {}, text));
    this.sectionNodes.get(title)?.replaceChildren(...nodes);
  }

  // Return the nodes of a job: its line, which is a button, and its output.
  newJob({ number, line }) {
    const text = this.openJobs.get(number), isOpen = text !== undefined;
    const node = button(line, () => this.toggleJob(number, node), { class: "cm-job", "aria-expanded": String(isOpen) });
    const output = el("pre", { class: "cm-job-output" }, text ?? "");
    output.hidden = !isOpen;
    output.dataset.job = number;
    return [node, output];
  }

  toggleJob(number, node) {
    const wasOpen = this.openJobs.delete(number);
    node.setAttribute("aria-expanded", String(!wasOpen));
    node.nextSibling.hidden = wasOpen;
    if (wasOpen) return;
    this.showJob({ number, text: "…" });
    this.send({ do: "job", number });
  }

  showJob({ number, text }) {
    this.openJobs.set(number, text);
    const node = this.content.querySelector(`[data-job="${Number(number)}"]`);
    if (node) setText(node, text);
  }

  newChartSection() {
    return el("div", { class: "cm-section cm-wide" }, el("h4", {}, "Emitted values"), this.chart.node);
  }
}

// The widget of %fleet: filter, buttons, table, and the pane below it.
class Dashboard {
  constructor(model) {
    this.model = model;
    this.send = (message) => model.send(message);
    this.pane = new Pane(this.send);
    this.table = new Table(
      (name) => name && this.send({ do: "page", board: name }),
      () => this.showCounts(),
      model.get("fact_columns"),
    );
    this.filter = el("input", {
      type: "text", spellcheck: "false", "aria-label": "Target", placeholder: "All boards, or a target: lab-*, room=north, state=busy",
    });
    this.filter.value = model.get("initial_filter");
    this.filter.addEventListener("input", () => this.onFilter());
    this.filterError = el("span", { class: "cm-filter-error", role: "status" });
    this.counts = el("span", { class: "cm-count", role: "status" });
    this.lost = lostBanner();
    this.buttons = model.get("actions").map((action) =>
      button(action.title, () => this.start(action), { "data-action": action.name }),
    );
    this.prompt = el("form", { class: "cm-prompt" });
    this.prompt.hidden = true;
    this.node = el(
      "div",
      { class: "cm-fleet", "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "cm-bar" }, this.filter, this.counts),
      this.filterError,
      this.lost,
      el("div", { class: "cm-bar", role: "toolbar", "aria-label": "With the selected boards" }, ...this.buttons),
      this.prompt,
      this.table.node,
      this.pane.node,
    );
    this.node.addEventListener("keydown", (event) => this.onKey(event));
    this.redrawTimer = setInterval(() => this.table.draw(), 1000); // for the times that are shown
    this.showCounts();
  }

  onKey(event) {
    event.stopPropagation(); // or the notebook would take the keys as its shortcuts
    if (event.key !== "Escape") return;
    if (!this.prompt.hidden) this.prompt.hidden = true;
    else if (!this.pane.node.hidden) this.pane.close();
    this.table.node.focus({ preventScroll: true });
  }

  onFilter() {
    clearTimeout(this.filterTimer); // sent when the user pauses for 120 ms
    this.filterTimer = setTimeout(() => this.send({ do: "filter", text: this.filter.value }), 120);
  }

  // Show how many boards there are, in which states, and selected; disable buttons without a selection.
  showCounts() {
    const rows = [...this.table.rows.values()], selected = this.table.selectedNames().length;
    const states = STATES.map((state) => [rows.filter((row) => row.state === state).length, state]);
    const byState = states.filter(([count]) => count).map(([count, state]) => `${count.toLocaleString("en")} ${state}`);
    const filtered = this.table.filtered ? `${this.table.list.length.toLocaleString("en")} of ` : "";
    const boards = `${filtered}${rows.length.toLocaleString("en")} ${rows.length === 1 ? "board" : "boards"}`;
    setText(this.counts, [boards, ...byState, `${selected.toLocaleString("en")} selected`].join(" · "));
    for (const node of this.buttons) node.disabled = !selected;
  }

  // Perform an action, after prompting for its text if it needs one.
  start(action) {
    if (!action.prompt) {
      this.perform(action, "");
      return;
    }
    const field = el(action.lines > 1 ? "textarea" : "input", {
      placeholder: action.prompt, rows: String(action.lines), spellcheck: "false", "aria-label": action.prompt,
    });
    const submit = el("button", { type: "submit" }, action.title);
    const hint = action.lines > 1 ? "Ctrl+Enter" : "Enter";
    this.prompt.replaceChildren(field, submit, el("span", { class: "cm-hint" }, hint));
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
    this.send({ do: "action", action: action.name, boards: this.table.selectedNames(), text });
    this.table.node.focus({ preventScroll: true });
  }

  onMessage(message) {
    const { kind } = message;
    if (kind === "boards") {
      this.setLost("");
      this.table.update(message);
    } else if (kind === "filtered") {
      this.table.filtered = message.names && new Set(message.names);
      setText(this.filterError, message.error);
      this.table.refresh();
    } else if (kind === "lost") {
      this.setLost(message.reason);
    } else if (kind === "action") {
      this.pane.showAction(message);
    } else if (kind === "page") {
      this.pane.showPage(message);
    } else if (kind === "section" && message.board === this.pane.board) {
      this.pane.fillSection(message.section);
    } else if (kind === "job") {
      this.pane.showJob(message);
    } else if (kind === "samples" && message.board === this.pane.board) {
      this.pane.chart.add(message.samples);
    }
  }

  // Show that the server is unreachable, and why; "" means that it is reachable.
  setLost(reason) {
    showLost(this.lost, reason);
    this.table.node.classList.toggle("cm-stale", Boolean(reason));
  }

  dispose() {
    clearInterval(this.redrawTimer);
    this.pane.chart.dispose();
  }
}
