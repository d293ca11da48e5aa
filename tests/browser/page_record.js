// Records what a page sends, receives and types, for the report of a test that fails: conftest.py
// adds it to each page before JupyterLab's own scripts, and reads `cmRecord`. While a test sets `cmLose`,
// messages to a kernel that contain this text are lost.
(() => {
  const KEPT = 150; // entries
  const TEXT = 160; // characters of a message's content
  const decoder = new TextDecoder();
  window.cmRecord = [];

  const add = (kind, text) => {
    if (window.cmRecord.length >= KEPT) window.cmRecord.shift();
    window.cmRecord.push(`${(performance.now() / 1000).toFixed(3)} ${kind} ${text}`);
  };

  // Return a kernel's message as text. The protocol v1.kernel.websocket.jupyter.org begins a frame
  // with the number of offsets and the offsets, as 64-bit integers; the parts are the channel,
  // header, parent header, metadata, content, and buffers.
  const messageText = (data) => {
    const view = new DataView(data);
    const offset = (index) => Number(view.getBigUint64(8 * (index + 1), true));
    const part = (index) => new Uint8Array(data, offset(index), offset(index + 1) - offset(index));
    const json = (index) => JSON.parse(decoder.decode(part(index)));
    const header = json(1);
    const content = decoder.decode(part(4).subarray(0, TEXT));
    const subshell = header.subshell_id ? ` subshell ${header.subshell_id.slice(0, 8)}` : "";
    const parent = json(2).msg_id;
    const answer = parent ? ` for ${parent}` : "";
    return `${decoder.decode(part(0))} ${header.msg_type} ${header.msg_id}${subshell}${answer} ${content}`;
  };

  const frameText = (data) => {
    try {
      return typeof data === "string" ? data.slice(0, TEXT) : messageText(data);
    } catch (error) {
      return `a frame that is not a kernel's message: ${error}`;
    }
  };

  const nodeText = (node) => `${node?.nodeName?.toLowerCase()}.${node?.className} ${node?.textContent?.slice(0, 20)}`;

  window.WebSocket = class extends WebSocket {
    constructor(...args) {
      super(...args);
      const path = new URL(this.url).pathname;
      this.addEventListener("message", ({ data }) => add("received", frameText(data)));
      for (const kind of ["open", "close", "error"]) {
        this.addEventListener(kind, ({ code, reason }) => add(`socket ${kind}`, `${path} ${code ?? ""} ${reason ?? ""}`));
      }
    }

    send(data) {
      const text = frameText(data), isLost = window.cmLose && text.includes(window.cmLose);
      add(isLost ? "lost" : this.readyState === WebSocket.OPEN ? "sent" : "sent on a closed socket", text);
      if (!isLost) super.send(data);
    }
  };

  for (const kind of ["keydown", "submit", "click", "focusin"]) {
    window.addEventListener(kind, (event) => add(kind, `${event.key ?? ""} ${nodeText(event.target)}`), true);
  }
  window.addEventListener("error", ({ message }) => add("error", message));
  window.addEventListener("unhandledrejection", ({ reason }) => add("rejection", reason));
})();
