# A STAND-IN for a real port's console, in MicroPython's unix port, which has no os.dupterm and
# os.dupterm_notify. It follows extmod/os_dupterm.c and extmod/modos.c: an exception that the stream
# raises removes it, and so does a read of 0; None means that there is no data; the scheduler is
# locked while it reads (soft timers are scheduled calls); byte 3 raises KeyboardInterrupt at
# MicroPython's next safe point. The parts that are C code on chips are in standin_host.py,
# machine.Timer and machine.WDT in standin_timers.py.
# With "flash" in its settings it is a whole chip: its flash is in a file, its terminal is a serial
# port, and it runs the programs on its flash, then a REPL (tests/cloudmanager/chip.py).
import __main__
import builtins
import io
import os
import sys
import uctypes
from json import dumps, loads

sys.path.append(sys.argv[3])
import standin_timers

settings = loads(uctypes.bytes_at(int(sys.argv[1]), int(sys.argv[2])))
box = uctypes.bytearray_at(settings["box"], settings["box_bytes"])
_STARTED = 0
ask = open(settings["ask"], "wb")
answer = open(settings["answer"], "rb")
console = print
dropped = []  # why the stream was dropped: a test looks here


class Os:
    pass


class Machine:
    pass


real = Os()
for name in dir(os):
    if name[0] != "_":
        setattr(real, name, getattr(os, name))
slots = [None]


def deactivate(why):
    slots[0] = None
    dropped.append(why)
    console("dupterm: dropped", why)


def dupterm(stream, index=0):
    before, slots[index] = slots[index], stream
    return before


def rx_chr():
    if slots[0] is None:
        return -1
    one = bytearray(1)
    try:
        n = slots[0].readinto(one)
    except BaseException as e:
        deactivate("read " + repr(e))
        return -1
    if n is None:
        return -1
    if n == 0:
        deactivate("end of file")
        return -1
    if one[0] == 3:  # no jump from here on: what is pending now comes out in the cell, as after C
        ask.write(b"3")
        answer.readinto(one)
        return -2
    return one[0]


def dupterm_notify(_):
    rx_chr()


class Terminal(io.IOBase):  # mp_hal_stdout_tx_strn_cooked
    def write(self, b):
        if slots[0] is not None:
            data = bytearray(bytes(b).replace(b"\n", b"\r\n"))
            try:
                slots[0].write(data)
            except BaseException as e:
                deactivate("write " + repr(e))
        if "flash" in settings:
            sys.stdout.write(b)  # the UART
        return len(b)


terminal = Terminal()


def hook(*args, sep=" ", end="\n", file=None):
    console(*args, sep=sep, end=end, file=terminal if file in (None, sys.stdout) else file)


class Ram:
    blocks = 8

    def __init__(self):
        self.data = bytearray(self.blocks * 4096)

    def readblocks(self, n, buf, offset=0):
        at = n * 4096 + offset
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, offset=0):
        at = n * 4096 + offset
        self.data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        return {4: self.blocks, 5: 4096}.get(op, 0)


class Flash(Ram):
    blocks = 256
    writes = 0

    def __init__(self, path):
        self.file = open(path, "r+b")

    def readblocks(self, n, buf, offset=0):
        self.file.seek(n * 4096 + offset)
        self.file.readinto(buf)

    def writeblocks(self, n, buf, offset=0):
        self.writes += 1
        if self.writes == settings.get("cut"):  # the power goes, this once
            restart()
        self.file.seek(n * 4096 + offset)
        self.file.write(buf)


# A STAND-IN for a Wi-Fi station: what esp32 and esp8266 say in network.WLAN. "air" in the settings
# says which networks there are, with their passwords.
class Network:
    STA_IF = 0
    STAT_IDLE, STAT_CONNECTING, STAT_GOT_IP = 1000, 1001, 1010
    STAT_NO_AP_FOUND, STAT_WRONG_PASSWORD = 201, 202

    def __init__(self):
        self.state = self.STAT_IDLE
        self.tried = []
        self.settings = []  # names, countries and addresses that were set
        self.looks = 0  # until the cable is up
        self.away = False  # a static address of another network: nothing can be reached

    def LAN(self, **how):
        with open("/tried", "a") as file:
            file.write(dumps(how) + "\n")
        self.looks = 3
        return self

    def WLAN(self, interface):
        return self

    def hostname(self, name):
        self.settings.append(name)

    country = hostname

    def ifconfig(self, new=None):
        if new is None:
            return ("192.168.4.7", "255.255.255.0", "192.168.4.1", "192.168.4.1")
        self.away = not new[0].startswith("192.168.4.")
        return self.settings.append(new)

    def config(self, name):
        return {"mac": b"\x28\xcd\xc1\x00\x00\x01"}[name]

    def active(self, on=None):
        return True

    def connect(self, name, password):
        with open("/tried", "a") as file:
            file.write(name + "\n")
        air = settings["air"]
        if name not in air:
            self.state = self.STAT_NO_AP_FOUND
        elif air[name] != password:
            self.state = self.STAT_WRONG_PASSWORD
        else:
            self.state = self.STAT_GOT_IP

    def disconnect(self):
        self.state = self.STAT_IDLE

    def isconnected(self):
        if self.looks:
            self.looks -= 1
            self.state = self.STAT_IDLE if self.looks else self.STAT_GOT_IP
        return self.state == self.STAT_GOT_IP

    def status(self):
        return self.state


# A STAND-IN for a heap that is too full for TLS until the board has restarted: on chips mbedTLS
# allocates from MicroPython's heap, and reports a full one as OSError(ENOMEM).
class FullTls:
    PROTOCOL_TLS_CLIENT = CERT_REQUIRED = 0

    def SSLContext(self, _):
        return self

    def load_verify_locations(self, _):
        pass

    def wrap_socket(self, *_, **__):
        raise OSError(12)


# Restarts the chip (R) or only the interpreter (S), even if a program runs.
def restart(how=b"R"):
    ask.write(how)
    answer.readinto(bytearray(1))


# As in extmod/modmachine.c: the exception ends the program, unless it is caught.
def soft_reset():
    raise SystemExit


def mount(device):
    os.umount("/")
    try:
        fs = os.VfsLfs2(device)
    except OSError:
        os.VfsLfs2.mkfs(device)
        fs = os.VfsLfs2(device)
    os.mount(fs, "/")
    os.chdir("/")


slots_flash = None
if "ota" in settings:
    from standin_ota import File

    slots_flash = File(open(settings["ota"], "r+b"))
host = os.VfsPosix(settings["client"]) if "client" in settings else None
mount(Flash(settings["flash"]) if "flash" in settings else Ram())
sys.path[:] = ["", "/lib", ".frozen"]


# Stands in for modules that are frozen into the firmware: they can be imported, but not listed.
def listdir(path="."):
    if path.startswith("/frozen"):
        raise OSError(2)
    return os.listdir(path)


if "frozen" in settings:
    real.listdir = listdir
if host:
    os.mount(host, "/host")
    sys.path.append("/host")
    with open("/cm.json", "w") as file:
        file.write(dumps(settings["config"]))
real.dupterm, real.dupterm_notify = dupterm, dupterm_notify


# A STAND-IN for the second core of RP2. The unix port has threads, but its collector fails if a
# signal of the timers comes while it waits for them (ports/unix/mpthreadport.c). So a "thread" is a
# call by a timer, between any two bytecodes of the first core, in the client's code too.
class Threads:
    core = 0

    def get_ident(self):
        return self.core

    def start_new_thread(self, function, args):
        def run(timer):
            self.core = 1
            try:
                function(*args)
            except BaseException as e:
                sys.print_exception(e)
            self.core = 0

        self.timer = machine.Timer(-1)  # RP2 stops a timer that nothing refers to
        self.timer.init(mode=machine.Timer.ONE_SHOT, period=1, callback=run)


machine = Machine()
machine.clock = []  # what the RTC was set to: a test looks here
machine.PWRON_RESET, machine.WDT_RESET = 1, 3  # as in ports/rp2/modmachine.c
machine.reset_cause = lambda: settings.get("reset_cause", 1)
machine.reset, machine.soft_reset = restart, soft_reset
sys.modules["time"] = standin_timers.install(machine, settings, box, ask, answer)
sys.modules["os"] = real
sys.modules["machine"] = machine
if "air" in settings:
    sys.modules["network"] = Network()
built_in = {name: sys.modules[name] for name in ("machine", "os", "time")}


class Sockets:
    def socket(self, *kind):
        if built_in["network"].away:
            raise OSError(113)
        return sockets.socket(*kind)


if "air" in settings:
    import socket as sockets

    standin_sockets = Sockets()
    for name in dir(sockets):
        if name[0] != "_" and name != "socket":
            setattr(standin_sockets, name, getattr(sockets, name))
    built_in["socket"] = standin_sockets
if settings.get("port", "")[:3] == "rp2":
    built_in["_thread"] = sys.modules["_thread"] = Threads()
if "air" in settings:
    built_in["network"] = sys.modules["network"]
if "full" in settings and "full" not in os.listdir("/"):
    open("/full", "w").close()
    built_in["tls"] = FullTls()
real_import = __import__


# A STAND-IN for two slots of firmware (standin_ota.py). What runs is this MicroPython; the image in
# the slot says which version it calls itself.
class Implementation:
    name = "micropython"
    _machine = "Generic ESP32 module with OTA with ESP32"
    _mpy = sys.implementation._mpy & 0x3FF

    def __init__(self, text):
        self.version = tuple([int(number) for number in text.split(".")]) + ("",)

    def __getitem__(self, number):
        return (self.name, self.version, self._machine, self._mpy)[number]


class Sys:
    platform = settings.get("port", "esp8266").split("-")[0]
    if platform[:5] == "esp32":
        platform = "esp32"


standin_sys = Sys()
for name in dir(sys):
    if name[0] != "_" and name != "platform":
        setattr(standin_sys, name, getattr(sys, name))
if "ota" in settings:
    import standin_ota

    slots_chip = standin_ota.Chip(slots_flash)
    slots_chip.start(settings.get("soft", False))
    standin_sys.implementation = Implementation(slots_chip.version())

    class Esp32:
        Partition = standin_ota.make_partition(slots_chip)

    built_in["esp32"] = Esp32()
built_in["sys"] = standin_sys


# With an empty sys.path, MicroPython imports built-in modules even if sys.modules has others
# (py/builtinimport.c): then too, these stand in for those of a chip.
def standin_import(name, *rest):
    if name == "sys" or (not sys.path and name in built_in):
        return built_in[name]
    if "frozen" in settings and ".frozen" in sys.path and "/frozen" not in sys.path:
        sys.path.insert(sys.path.index(".frozen"), "/frozen")
    return real_import(name, *rest)


builtins.__import__ = standin_import
builtins.print = hook
builtins.dropped = dropped
builtins.restart = restart


# Runs what a chip runs after mounting its file system (shared/runtime/pyexec.c, ports' main.c).
def run_file(name):
    try:
        file = open(name)
    except OSError:
        return
    with file:
        text = file.read()
    try:
        exec(compile(text, name, "exec"), __main__.__dict__)
    except SystemExit:
        restart(b"S")
    except BaseException as e:
        sys.print_exception(e)


if "flash" in settings:
    box[_STARTED] = 1
    run_file("boot.py")
    run_file("main.py")
