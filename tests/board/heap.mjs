// What the client costs on a 32-bit heap: the WebAssembly build of MicroPython, differences only.
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
// What this build lacks and a board has is put in its place before the first look.
mp.runPython(`
import binascii, builtins, gc, hashlib, io, json, micropython, os, select, struct, sys, time

class Has:
    pass

machine = Has()
class Timer:
    PERIODIC = 1
    def __init__(self, id): pass
machine.Timer = Timer
board_os = Has()
board_os.urandom = lambda n: bytes(n)
board_os.dupterm = board_os.dupterm_notify = lambda *_: None
socket = Has()
# Names that the firmware of a board with a network has, and this build has not.
for name in ("AF_INET SOCK_STREAM getaddrinfo setsockopt settimeout setblocking connect fileno sha1 "
             "init deinit period mode callback unhexlify uctypes addressof bytearray_at kbd_intr mem_free").split():
    setattr(socket, name, None)
sys.modules.update({"machine": machine, "os": board_os, "socket": socket})
sys.path.append("/client")
seen = {}
def look(name):
    gc.collect()
    gc.collect()
    seen[name] = gc.mem_alloc()
settings = {"id": "id-1", "key": "00" * 32, "host": "192.168.1.1", "tcp_port": 18266}
for name in ("start", "link", "console", "run", "board", "ask", "dial"):
    seen[name] = 0
look("start")
import cm.link
look("link")
import cm.console
look("console")
import cm.run
look("run")
board = cm.run.Board(settings)
look("board")
import cm.ask
look("ask")
import cm.dial
look("dial")
print(json.dumps([sys.implementation.version[:3], seen]))
`);
console.log(said.join("\n"));
