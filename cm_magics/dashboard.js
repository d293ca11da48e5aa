// The dashboard: the live table, what is done with boards, and a page for each. Behind table.js in one module.

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
    this.parts = new Map(); // a part's title -> where it is told
    this.jobs = new Map(); // the number of a job whose output is shown -> that
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
    if (this.board !== board) this.turnTo(board, sections);
    for (const section of sections) if (!section.asked) this.fill(section);
    this.chart.add(samples);
  }

  turnTo(board, sections) {
    this.board = board;
    this.jobs.clear();
    this.parts.clear();
    this.chart.clear();
    setText(this.title, board);
    this.content.replaceChildren(...sections.map((section) => this.part(section)), this.plotted());
    this.node.hidden = false;
    this.content.scrollTop = 0;
    this.content.focus({ preventScroll: true });
  }

  part({ title, asked }) {
    const told = el("div", {}), head = el("h4", {}, title);
    if (asked) head.append(button("Show", (event) => this.look(title, event.target), { "aria-label": `${title} of this board` }));
    this.parts.set(title, told);
    return el("div", { class: "cm-section" }, head, told);
  }

  look(title, node) {
    setText(node, "Refresh");
    this.fill({ title, text: "… a busy board answers when it is idle" });
    this.ask({ do: "section", board: this.board, title });
  }

  fill({ title, pairs, jobs, text }) {
    const nodes = [];
    if (pairs) nodes.push(el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    for (const job of jobs ?? []) nodes.push(...this.job(job));
    if (text !== undefined) nodes.push(el("pre", {}, text));
    this.parts.get(title)?.replaceChildren(...nodes);
  }

  job({ number, line }) {
    const open = this.jobs.get(number);
    const node = button(line, () => this.turn(number, node), { class: "cm-job", "aria-expanded": String(open !== undefined) });
    const told = el("pre", { class: "cm-told" }, open ?? "");
    told.hidden = open === undefined;
    told.dataset.job = number;
    return [node, told];
  }

  turn(number, node) {
    const open = this.jobs.delete(number);
    node.setAttribute("aria-expanded", String(!open));
    node.nextSibling.hidden = open;
    if (!open) this.tellJob({ number, text: "…" });
    if (!open) this.ask({ do: "job", number });
  }

  tellJob({ number, text }) {
    this.jobs.set(number, text);
    const node = this.content.querySelector(`[data-job="${Number(number)}"]`);
    if (node) setText(node, text);
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
    this.filter.value = model.get("initial_filter");
    this.filter.addEventListener("input", () => this.onFilter());
    this.complaint = el("span", { class: "cm-complaint", role: "status" });
    this.counted = el("span", { class: "cm-count", role: "status" });
    this.lost = lostBanner();
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
    } else if (kind === "section" && message.board === this.pane.board) {
      this.pane.fill(message.section);
    } else if (kind === "job") {
      this.pane.tellJob(message);
    } else if (kind === "samples" && message.board === this.pane.board) {
      this.pane.chart.add(message.samples);
    }
  }

  lose(why) {
    tellLost(this.lost, why);
    this.table.node.classList.toggle("cm-stale", Boolean(why));
  }

  end() {
    clearInterval(this.clock);
    this.pane.chart.end();
  }
}
