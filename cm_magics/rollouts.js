// The rollouts of the dashboard: waves, boards by state, failures, and buttons. Concatenated after table.js.

const BAR_STATES = [["proven", "proven"], ["active", "being switched"], ["waiting", "waiting"], ["failed", "failed"]];

// The area with the newest rollout of each group. It appears when one is in progress, or on request.
class Rollouts {
  // `act` is called with a verb and the name of a group.
  constructor(act) {
    this.act = act;
    this.isWanted = false; // a rollout that begins opens it; the user closes and opens it
    this.hasOpen = false;
    this.node = el("section", { class: "cm-rollouts", "aria-label": "Rollouts" });
    this.node.hidden = true;
    this.toggle = button("Rollouts", () => this.onToggle(), { "aria-expanded": "false" });
    this.toggle.hidden = true;
  }

  onToggle() {
    this.isWanted = this.node.hidden;
    this.updateHidden();
  }

  updateHidden() {
    this.node.hidden = !this.isWanted;
    this.toggle.setAttribute("aria-expanded", String(!this.node.hidden));
  }

  show(rollouts) {
    const open = rollouts.filter((rollout) => rollout.is_open);
    const failed = rollouts.filter((rollout) => rollout.state === "failed");
    if (open.length && !this.hasOpen) this.isWanted = true; // it stays, so that one sees how it ends
    if (!rollouts.length) this.isWanted = false;
    this.hasOpen = open.length > 0;
    this.toggle.hidden = !rollouts.length;
    const notes = [[open, "in progress"], [failed, "failed"]].filter(([list]) => list.length);
    const note = notes.map(([list, text]) => `${list.length} ${text}`).join(", ");
    setText(this.toggle, note ? `Rollouts (${note})` : "Rollouts");
    const focused = document.activeElement?.dataset?.rollout;
    this.node.replaceChildren(...rollouts.map((rollout) => this.newRollout(rollout)));
    if (focused) this.node.querySelector(`[data-rollout="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    this.updateHidden();
  }

  newRollout({ number, group, name, change, state, why, is_open: isOpen, wave, waves, lines, verbs }) {
    const where = isOpen && waves.length > 1 ? `, wave ${Math.min(wave, waves.length)} of ${waves.length}` : "";
    const head = el(
      "header",
      {},
      el("h3", {}, group),
      el("span", { class: "cm-change" }, change),
      el("span", { class: "cm-rollout-state" }, `${state}${where}`),
      el("span", { class: "cm-why" }, why),
      el("span", { class: "cm-verbs" }, ...verbs.map(([verb, label]) => this.newVerb(number, name, group, verb, label))),
    );
    const bars = el("div", { class: "cm-waves" }, ...waves.map((counts, index) => this.newWave(counts, index, waves.length)));
    const rows = lines.flatMap(({ state: of, count, text, boards }) => [
      el("span", { class: "cm-number" }, count),
      el("span", { class: "cm-line-state", "data-state": of }, text),
      el("span", {}, boards),
    ]);
    return el("article", { class: "cm-rollout", "data-state": state }, head, bars, el("div", { class: "cm-lines" }, ...rows));
  }

  // Pausing and resuming are done at once; what cannot be taken back asks for a second click.
  newVerb(number, name, group, verb, label) {
    const act = () => this.act(verb, name);
    const node = button(label, () => (verb === "pause" || verb === "resume" ? act() : confirmClick(node, act)), {
      "aria-label": `${label} ${group}`,
      "data-rollout": `${number} ${verb}`,
    });
    return node;
  }

  newWave(counts, index, total) {
    const shown = BAR_STATES.filter(([key]) => counts[key]);
    const size = shown.reduce((sum, [key]) => sum + counts[key], 0);
    const label = `Wave ${index + 1} of ${total}: ${shown.map(([key, text]) => `${counts[key]} ${text}`).join(", ")}`;
    const bar = el("div", { class: "cm-wave", role: "img", "aria-label": label, title: label });
    bar.style.flexGrow = Math.sqrt(size || 1);
    for (const [key] of shown) {
      const part = el("i", { "data-state": key });
      part.style.flexGrow = counts[key];
      bar.append(part);
    }
    return bar;
  }
}
