// The dashboard: the live table, actions for the selected boards, and a page for each board.
// Concatenated after rollouts.js.

// The area below the table: the outcome of an action, or a board's page.
class Pane {
  // `send` sends a message to Python, `upload` files to boards: upload(names, files, folder).
  constructor(send, upload) {
    this.send = send;
    this.upload = upload;
    this.board = null; // the board whose page is shown
    this.wantedBoard = null; // the board whose page the user has opened; its page may be on its way
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
    this.file = el("div", { class: "cm-file cm-wide" }); // the file that is open
    acceptFiles(this.content, (files) => this.board && this.upload([this.board], files, "/"));
    this.openJobs = new Map(); // number of each job whose output is shown -> the output
    this.log = el("pre", { class: "cm-log", role: "log", "aria-live": "off", tabindex: "0" });
    this.logLines = [];
  }

  close() {
    this.node.hidden = true;
    this.leavePage();
  }

  // Request a board's page; it is shown when it arrives.
  requestPage(board) {
    this.wantedBoard = board;
    this.send({ do: "page", board });
  }

  // A page that is still on its way, or an update of it, must not appear any more.
  leavePage() {
    if (this.wantedBoard) this.send({ do: "page", board: null });
    this.wantedBoard = this.board = null;
  }

  // Show the progress or the outcome of an action.
  showAction({ title, text, state }) {
    this.leavePage();
    setText(this.title, title);
    const focused = this.node.contains(document.activeElement);
    this.content.replaceChildren(el("pre", { "data-state": state }, text));
    this.node.hidden = false;
    if (focused) this.content.focus({ preventScroll: true });
  }

  // Show a board's page, or update it if it is open already.
  showPage({ board, renamed_from: oldName, sections, samples }) {
    if (oldName && oldName === this.wantedBoard) this.wantedBoard = board;
    if (board !== this.wantedBoard) return; // the user has closed it since
    if (this.board !== board) this.openPage(board, sections);
    for (const section of sections) if (!section.on_demand) this.fillSection(section);
    this.chart.add(samples);
  }

  openPage(board, sections) {
    this.board = board;
    this.openJobs.clear();
    this.sectionNodes.clear();
    this.chart.clear();
    this.logLines = [];
    setText(this.log, "nothing was printed outside of cells");
    setText(this.title, board);
    this.file.replaceChildren();
    const nodes = [...sections.map((section) => this.newSection(section)), this.file, this.newLogSection(), this.newChartSection()];
    this.content.replaceChildren(...nodes);
    this.node.hidden = false;
    this.content.scrollTop = 0;
    const isTyping = document.activeElement?.matches("input, textarea, [contenteditable='true']");
    if (!isTyping) this.content.focus({ preventScroll: true }); // the page may come seconds after the click
  }

  // Return the nodes of an empty section; one on demand has a button that requests its content.
  newSection({ title, on_demand: onDemand }) {
    const content = el("div", {}), heading = el("h4", {}, title);
    if (onDemand) {
      const label = { "aria-label": `${title} of this board` };
      heading.append(button("Show", (event) => this.requestSection(title, event.target), label));
      if (title === "Files") {
        const choose = () => chooseFiles((files) => this.upload([this.board], files, "/"));
        heading.append(button("Upload…", choose, { title: "Or drop files anywhere on this page of the board." }));
      }
    }
    this.sectionNodes.set(title, content);
    return el("div", { class: "cm-section" }, heading, content);
  }

  requestSection(title, showButton) {
    setText(showButton, "Refresh");
    this.fillSection({ title, text: "Loading … (a busy board answers when it is idle)" });
    this.send({ do: "section", board: this.board, title });
  }

  fillSection({ title, pairs, jobs, files, text }) {
    const nodes = [];
    if (files) nodes.push(el("div", { class: "cm-files" }, ...files.flatMap((file) => this.newFile(file))));
    if (pairs) nodes.push(el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    for (const job of jobs ?? []) nodes.push(...this.newJob(job));
    if (text !== undefined) nodes.push(el("pre", {}, text));
    this.sectionNodes.get(title)?.replaceChildren(...nodes);
  }

  // Return the nodes of a file or a folder: its path, its size, and its buttons.
  newFile({ path, line, size, is_folder: isFolder }) {
    const act = (verb) => this.send({ do: "file", board: this.board, path, verb });
    const deleteButton = button("Delete", () => confirmClick(deleteButton, () => act("delete")));
    const uploadButton = button("Upload here…", () => chooseFiles((files) => this.upload([this.board], files, `${path}/`)));
    const buttons = isFolder
      ? [uploadButton]
      : [button("Open", () => act("open")), button("Download", () => act("download")), deleteButton];
    for (const node of buttons) node.setAttribute("aria-label", `${node.textContent} ${line}`);
    return [el("span", {}, line), el("span", { class: "cm-size" }, size), el("span", {}, ...buttons)];
  }

  // Show a board's file, or what became of it; or hand it to the browser to save.
  showFile({ board, path, verb, text, file_name: fileName }, buffers) {
    if (board !== this.board) return;
    if (text === undefined) {
      saveFile(fileName, buffers[0]);
      return;
    }
    const close = button("Close file", () => this.file.replaceChildren());
    this.file.replaceChildren(el("h4", {}, path, close), el("pre", {}, text));
    if (verb === "open") this.file.scrollIntoView({ block: "nearest" });
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

  newLogSection() {
    return el("div", { class: "cm-section cm-wide" }, el("h4", {}, "Log"), this.log);
  }

  // Add lines to the log, and stay at its end unless the user has scrolled back.
  addLog(lines) {
    if (!lines.length) return;
    const { log } = this, isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 8;
    this.logLines = [...this.logLines, ...lines].slice(-MAX_LOG_LINES);
    setText(log, this.logLines.join("\n"));
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  newChartSection() {
    return el("div", { class: "cm-section cm-wide" }, el("h4", {}, "Emitted values"), this.chart.node);
  }
}

const MAX_LOG_LINES = 1000; // of a board's log that is shown
const MAX_UPLOAD_BYTES = 8 * 1024 * 1024; // Jupyter's server refuses larger messages (10 MiB)

// Let the user choose files of this computer, and call `use` with them.
function chooseFiles(use) {
  const input = el("input", { type: "file", multiple: "" });
  input.addEventListener("change", () => use([...input.files]));
  input.click();
}

// Call `use` with the files that the user drops on a node, and with the event.
function acceptFiles(node, use) {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (event, isOver) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // or the browser would open the file
    event.stopPropagation(); // or JupyterLab would take it
    node.classList.toggle("cm-drop", isOver);
  };
  node.addEventListener("dragover", (event) => mark(event, true));
  node.addEventListener("dragleave", (event) => mark(event, false));
  node.addEventListener("drop", (event) => {
    mark(event, false);
    if (hasFiles(event)) use([...event.dataTransfer.files], event);
  });
}

// Hand bytes to the browser, which saves them as a file.
function saveFile(name, bytes) {
  const url = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Call `callback` if the user clicks a button a second time within 4 s.
function confirmClick(node, callback) {
  if (node.dataset.asked) {
    callback();
    return;
  }
  const text = node.textContent;
  node.dataset.asked = "yes";
  setText(node, `${text}?`);
  setTimeout(() => {
    delete node.dataset.asked;
    setText(node, text);
  }, 4000);
}

// The widget of %fleet: filter, buttons, table, and the pane below it.
class Dashboard {
  constructor(model, send) {
    this.model = model;
    this.send = send;
    this.pane = new Pane(this.send, (names, files, folder) => this.upload(names, files, folder));
    this.table = new Table(
      (name) => name && this.openPage(name),
      () => this.showCounts(),
      model.get("fact_columns"),
    );
    acceptFiles(this.table.node, (files, event) => this.onDrop(files, event));
    this.lastTexts = new Map(); // name of an action -> what the user typed last
    this.actionInPane = true; // whether the outcome of an action may take the place of a board's page
    this.notice = button("", () => this.showNotice(), { class: "cm-notice" });
    this.notice.hidden = true;
    this.filter = el("input", {
      type: "text", spellcheck: "false", "aria-label": "Target", placeholder: "All boards, or a target: lab-*, room=north, state=busy; or any text",
    });
    this.filter.value = model.get("initial_filter");
    this.filter.addEventListener("input", () => this.onFilter());
    this.filterError = el("span", { class: "cm-filter-error", role: "status" });
    this.counts = el("span", { class: "cm-count", role: "status" });
    this.banner = new Banner(model.get("lost_text"), model.get("waiting_text"));
    this.rollouts = new Rollouts((verb, group) => this.send({ do: "rollout", verb, group }));
    this.buttons = model.get("actions").map((action) =>
      button(action.title, () => this.start(action), { "data-action": action.name }),
    );
    this.prompt = el("form", { class: "cm-prompt" });
    this.prompt.hidden = true;
    this.chooser = this.newColumnChooser();
    const columns = button("Columns", () => this.toggleChooser(columns), { class: "cm-columns-button", "aria-expanded": "false" });
    this.node = el(
      "div",
      { class: "cm-fleet", "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "cm-bar" }, this.filter, this.counts),
      this.filterError,
      this.banner.node,
      el("div", { class: "cm-bar", role: "toolbar", "aria-label": "With the selected boards" }, ...this.buttons, this.rollouts.toggle, columns),
      this.chooser,
      this.prompt,
      this.notice,
      this.table.node,
      this.rollouts.node,
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

  newColumnChooser() {
    const boxes = this.table.allColumns.filter((column) => column.key !== "name").map(({ key, title }) => {
      const box = el("input", { type: "checkbox" });
      box.checked = this.table.shownKeys.has(key);
      box.addEventListener("change", () => this.table.showColumn(key, box.checked));
      return el("label", {}, box, title);
    });
    const node = el("div", { class: "cm-chooser", role: "group", "aria-label": "Columns" }, ...boxes);
    node.hidden = true;
    return node;
  }

  toggleChooser(node) {
    this.chooser.hidden = !this.chooser.hidden;
    node.setAttribute("aria-expanded", String(!this.chooser.hidden));
  }

  openPage(name) {
    this.actionInPane = false; // an action that still runs does not close the page
    this.pane.requestPage(name);
  }

  // Upload dropped files to the row's board, or to all selected boards if it is one of them.
  onDrop(files, event) {
    const row = this.table.rowAt(event), selected = this.table.selectedNames();
    const names = row && !selected.includes(row.name) ? [row.name] : selected;
    if (names.length) this.upload(names, files, "/");
    else this.showOutcome({ title: "Upload", text: "Drop files on a board, or select boards first.", state: "failed" });
  }

  async upload(names, files, folder) {
    for (const file of files) {
      const path = folder + file.name;
      if (file.size > MAX_UPLOAD_BYTES) {
        const text = `${file.name} is larger than 8 MB. Use %board_cp in a cell.`;
        this.showOutcome({ title: `Upload ${path}`, text, state: "failed" });
        continue;
      }
      try {
        this.send({ do: "upload", boards: names, path }, [await file.arrayBuffer()]);
      } catch (error) {
        // A folder, or a file that this user may not read.
        this.showOutcome({ title: `Upload ${path}`, text: `The browser cannot read it: ${error.message}`, state: "failed" });
      }
    }
  }

  // Show the progress or the outcome of an action: in the pane, or in one line while a board's page is open.
  showOutcome(outcome) {
    if (this.actionInPane || !this.pane.wantedBoard) {
      this.pane.showAction(outcome);
      return;
    }
    this.outcome = outcome;
    const firstLine = outcome.text.split("\n")[0];
    this.notice.dataset.state = outcome.state;
    this.notice.hidden = false;
    setText(this.notice, outcome.state === "running" ? `${outcome.title} …` : `${outcome.title}: ${firstLine}`);
  }

  showNotice() {
    this.notice.hidden = true;
    this.pane.showAction(this.outcome);
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
    const found = this.searched ? " contain this text" : "";
    const boards = `${filtered}${rows.length.toLocaleString("en")} ${rows.length === 1 ? "board" : "boards"}`;
    setText(this.counts, [boards + found, ...byState, `${selected.toLocaleString("en")} selected`].join(" · "));
    for (const node of this.buttons) node.disabled = !selected || this.banner.kernelLost;
  }

  // Perform an action on the boards that are selected now, after prompting for its text if it needs one.
  start(action) {
    const names = this.table.selectedNames();
    if (!action.prompt) {
      this.perform(action, names, "");
      return;
    }
    const field = el(action.lines > 1 ? "textarea" : "input", {
      placeholder: action.prompt, rows: String(action.lines), spellcheck: "false", "aria-label": action.prompt,
    });
    field.value = this.lastTexts.get(action.name) ?? "";
    const submit = el("button", { type: "submit" }, action.title.replace("…", ""));
    const key = action.lines > 1 ? "Ctrl+Enter" : "Enter";
    const boards = names.length === 1 ? names[0] : `${names.length.toLocaleString("en")} boards`;
    this.prompt.replaceChildren(field, submit, el("span", { class: "cm-hint" }, `${key}, for ${boards}`));
    this.prompt.onsubmit = (event) => {
      event.preventDefault();
      this.prompt.hidden = true;
      this.lastTexts.set(action.name, field.value);
      this.perform(action, names, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.prompt.requestSubmit();
    });
    this.prompt.hidden = false;
    field.focus();
    field.select();
  }

  perform(action, names, text) {
    this.actionInPane = true;
    this.notice.hidden = true;
    this.send({ do: "action", action: action.name, boards: names, text });
    this.table.node.focus({ preventScroll: true });
  }

  onMessage(message, buffers) {
    const { kind } = message;
    if (kind === "boards") {
      this.updateBanner({ serverLost: "" });
      if (message.filtered) this.setFiltered(message.filtered);
      this.table.update(message);
    } else if (kind === "filtered") {
      this.setFiltered(message);
      setText(this.filterError, message.error); // shown if the text is not a target and is found nowhere
    } else if (kind === "rollouts") {
      this.rollouts.show(message.rollouts);
    } else if (kind === "lost") {
      this.updateBanner({ serverLost: message.reason });
    } else if (kind === "action") {
      this.showOutcome(message);
    } else if (kind === "file") {
      this.pane.showFile(message, buffers);
    } else if (kind === "page") {
      this.pane.showPage(message);
    } else if (kind === "section" && message.board === this.pane.board) {
      this.pane.fillSection(message.section);
    } else if (kind === "job") {
      this.pane.showJob(message);
    } else if (kind === "log" && message.board === this.pane.board) {
      this.pane.addLog(message.lines);
    } else if (kind === "samples" && message.board === this.pane.board) {
      this.pane.chart.add(message.samples);
    }
  }

  // Show only the boards that the filter selects: those with these names; null for all.
  setFiltered({ names, searched }) {
    this.table.filtered = names && new Set(names);
    this.searched = searched;
    this.table.refresh();
  }

  // Show whether the kernel and the server can be reached; if not, the table is grey.
  updateBanner(state) {
    const isStale = this.banner.update(state);
    this.table.node.classList.toggle("cm-stale", isStale);
    this.pane.node.classList.toggle("cm-stale", isStale);
    this.rollouts.node.classList.toggle("cm-stale", isStale);
    this.showCounts();
  }

  setConnected(isConnected) {
    if (this.banner.kernelLost === isConnected) this.updateBanner({ kernelLost: !isConnected });
  }

  setWaiting(isWaiting) {
    if (this.banner.isWaiting !== isWaiting) this.updateBanner({ isWaiting });
  }

  dispose() {
    clearInterval(this.redrawTimer);
    this.pane.chart.dispose();
  }
}
