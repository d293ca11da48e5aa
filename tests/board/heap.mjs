// Heap of the client on a 32-bit board: heap_board.py on the WebAssembly build of MicroPython.
// node heap.mjs <folder of the npm package> <folder of the compiled client>; prints JSON.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [root, client] = process.argv.slice(2);
const { loadMicroPython } = await import(pathToFileURL(`${root}/micropython.mjs`));
const said = [];
process.on("uncaughtException", (error) => {
  console.error(error.message);
  process.exit(1);
});
const mp = await loadMicroPython({ stdout: (line) => said.push(line), linebuffer: true });
mp.FS.mkdir("/client");
mp.FS.mkdir("/client/cm");
for (const name of fs.readdirSync(`${client}/cm`)) {
  if (!name.endsWith(".mpy")) continue;
  mp.FS.writeFile(`/client/cm/${name}`, fs.readFileSync(`${client}/cm/${name}`));
}
// This build collects garbage only after a call from JavaScript has ended, so each step is a call.
const steps = fs.readFileSync(new URL("heap_board.py", import.meta.url), "utf8").split("# ---\n");
for (const step of steps) {
  mp.runPython(step);
  mp.runPython("gc.collect()");
}
console.log(said.at(-1));  // before it: what the cell printed
