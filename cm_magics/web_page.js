// The page of `mbm dashboard`: what the dashboard's widget needs of a notebook, over a WebSocket.
// Concatenated after dashboard.js, as the last file.

const RETRY_MS = 2000; // until the next attempt to connect

// anywidget's model, as far as plot.js uses it. A message with bytes is followed by one for each.
class PageModel {
  constructor(traits) {
    this.traits = traits;
    this.listeners = new Set();
    this.head = null; // a message whose bytes are on their way
    this.buffers = [];
  }

  // Connect; the promise is fulfilled when the page can send.
  connect() {
    this.socket = new WebSocket(new URL("socket", location.href.replace(/^http/, "ws")));
    this.socket.binaryType = "arraybuffer";
    this.socket.addEventListener("message", (event) => this.onData(event.data));
    this.socket.addEventListener("close", () => reloadWhenBack());
    return new Promise((resolve) => this.socket.addEventListener("open", resolve));
  }

  onData(data) {
    if (typeof data === "string") this.head = JSON.parse(data);
    else this.buffers.push(new DataView(data));
    if (!this.head || this.buffers.length < this.head.buffers) return;
    const { content } = this.head, buffers = this.buffers;
    [this.head, this.buffers] = [null, []];
    for (const listener of this.listeners) listener(content, buffers);
  }

  get(name) {
    return this.traits[name];
  }

  send(content, _callbacks, buffers = []) {
    if (this.socket.readyState !== WebSocket.OPEN) throw new Error("not connected");
    this.socket.send(JSON.stringify({ content, buffers: buffers.length }));
    for (const buffer of buffers) this.socket.send(buffer);
  }

  on(_event, listener) {
    this.listeners.add(listener);
  }

  off(_event, listener) {
    this.listeners.delete(listener);
  }
}

// Load the page again as soon as the program answers, if it still knows this browser.
function reloadWhenBack() {
  setTimeout(async () => {
    try {
      const response = await fetch("model.json", { cache: "no-store" });
      if (response.ok) location.reload();
    } catch {
      reloadWhenBack();
    }
  }, RETRY_MS);
}

async function start() {
  const traits = await (await fetch("model.json", { cache: "no-store" })).json();
  const model = new PageModel(traits);
  await model.connect();
  show(Dashboard).render({ model, el: document.getElementById("dashboard") });
}

start();
