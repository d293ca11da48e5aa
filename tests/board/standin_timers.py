# A STAND-IN for machine.Timer and machine.WDT of each port and version, in MicroPython's unix port.
# It follows ports/esp32/machine_timer.c (v1.24.1, v1.28.0 and later), ports/rp2/machine_timer.c,
# ports/esp8266/modmachine.c and the ports' machine_wdt.c. The clock and the soft reset are in
# standin_host.py.
#
#   port      Timer(-1)                            one timer, for all users of it   stops when
#   esp32     up to 1.24 the last hardware timer   each hardware timer              deinit, reset
#             from 1.25 to 1.28 a ValueError       each hardware timer              deinit, reset
#             from 1.29 a new virtual timer        each hardware timer              deinit, reset
#   rp2       a new virtual timer                  no                               collected, too
#   esp8266   a new virtual timer                  no                               deinit
#
# A watchdog that is not fed resets the chip; RP2's survives a soft reset, and a register stops it.
# lightsleep ends at the next tick of a timer on RP2; ESP32 loses its Wi-Fi.
#
# A timer of ESP8266 that is collected, or is armed at a soft reset, is a write to freed memory.
import struct
import time

HARDWARE = {"esp32": 4, "esp32s3": 4, "esp32c3": 2, "esp32c6": 2, "esp32c2": 1}  # how many timers
HEAD, SLOT = 32, 32  # bytes of the mailbox; the same layout is in standin_host.py
DOG = 16  # a byte that each feeding changes; 4 bytes at +4: ms until the reset, or 0
SKIPPED = 8  # 8 bytes: ms that machine.skip() has added to the clock
ARMED, GENERATION, PERIOD, CALLBACK, ARGUMENT = 0, 1, 4, 8, 16  # within a slot
KEPT = HEAD + SLOT * 24  # what survives a restart; the layout is in standin_host.py
ONCE = 2  # in ARMED: fires once; 1: periodic
PERIODIC = 1


# Sets up the module machine: settings["port"] is such as "esp32c3-1.28".
def install(machine, settings, box, ask, answer):
    chip, version = settings.get("port", "esp8266-1.28").split("-")
    version = tuple([int(n) for n in version.split(".")])
    real = time.ticks_ms
    began = real() if settings.get("ticks_from_zero") else 0

    class Clock:
        pass

    # One that machine.skip() can advance, for timers of a minute and more. It begins with 0, as a
    # chip's, where a test asks for that: asyncio has the real one.
    def ticks_ms():
        skipped = struct.unpack_from("<q", box, SKIPPED)[0]
        return time.ticks_add(time.ticks_diff(real(), began), skipped)

    def skip(ms):
        struct.pack_into("<q", box, SKIPPED, struct.unpack_from("<q", box, SKIPPED)[0] + ms)

    clock = Clock()
    for name in dir(time):
        if name[0] != "_":
            setattr(clock, name, getattr(time, name))
    clock.ticks_ms = ticks_ms

    class Timer:
        def __init__(self, virtual):
            ask.write(b"T")
            place = bytearray(2)
            answer.readinto(place)
            self.at = HEAD + SLOT * place[0]
            self.life = open(place[1], "wb")  # MicroPython closes it when this is collected
            self.virtual = virtual

        def init(self, *, mode=PERIODIC, callback=None, period=-1, tick_hz=1000, hard=None):
            if hard is not None:
                if version < {"rp2": (1, 26)}.get(chip, (1, 27)):
                    raise TypeError("extra keyword arguments given")
                if hard and chip in HARDWARE:
                    raise ValueError("hard Timers are not implemented")
            self.deinit()
            self.callback = callback
            if self.virtual and chip in HARDWARE:
                held.append(self)  # while it runs
            struct.pack_into("<I", box, self.at + PERIOD, max(period * 1000 // tick_hz, 1))
            struct.pack_into("<qq", box, self.at + CALLBACK, id(callback), id(self))
            box[self.at + GENERATION] = box[self.at + GENERATION] + 1 & 255
            box[self.at + ARMED] = PERIODIC if mode else ONCE

        def deinit(self):
            box[self.at + ARMED] = 0
            if self in held:
                held.remove(self)

    held = []  # virtual timers that the port keeps from being collected
    hardware = {}

    def esp32(number=None):
        count = HARDWARE[chip]
        if version < (1, 29):
            if number is None:
                raise TypeError("function missing 1 required positional arguments")
            if version < (1, 25):
                number &= count - 1
            elif not 0 <= number < count:
                raise ValueError("invalid Timer number")
        elif number is None or number < 0:
            return Timer(True)
        elif number >= count:
            raise ValueError("there are only %d hardware timers" % count)
        if number not in hardware:
            hardware[number] = Timer(False)
        return hardware[number]

    def rp2(number=-1):
        if number != -1:
            raise ValueError("Timer doesn't exist")
        return Timer(True)

    def esp8266(number):
        return Timer(True)

    create = esp32 if chip in HARDWARE else {"rp2": rp2, "esp8266": esp8266}[chip]

    class Timers:
        ONE_SHOT, PERIODIC = 0, PERIODIC

        def __call__(self, *number, **how):
            if how and chip == "esp8266":
                raise TypeError("function doesn't take keyword arguments")
            timer = create(*number)
            if how:
                timer.init(**how)
            return timer

    # machine.dogs[0] shows a test how it was fed.
    class WDT:
        def __init__(self, timeout=5000):
            if timeout > 8388 and chip == "rp2" or timeout != 5000 and chip == "esp8266":
                raise ValueError
            self.timeout = timeout
            self.fed = self.longest = 0  # how often; ms between two times, at most
            self.last = real()
            machine.dogs.append(self)
            struct.pack_into("<I", box, DOG + 4, timeout)
            self.feed()

        def feed(self):
            box[DOG] = box[DOG] + 1 & 255
            now = real()
            self.longest = max(self.longest, time.ticks_diff(now, self.last))
            self.last = now
            self.fed += 1

    class Registers:
        def scratch(self, address):
            n = (address - 0x4005800C) // 4  # RP2040's: SCRATCH0 to 7
            if chip != "rp2" or not 0 <= n < 8:
                raise ValueError("no such register")
            return KEPT + 4 + 4 * n

        def __getitem__(self, address):
            return struct.unpack_from("<I", box, self.scratch(address))[0]

        def __setitem__(self, address, value):
            if address == 0x40058000 + 0x3000 and value == 1 << 30:  # RP2040's watchdog: disable
                struct.pack_into("<I", box, DOG + 4, 0)
            else:
                struct.pack_into("<I", box, self.scratch(address), value)

    # The length and the bytes are kept in the mailbox, at KEPT + 36.
    class RTC:
        def datetime(self, new):
            machine.clock.append(new)

    class MemoryRTC(RTC):
        def memory(self, *new):
            at = KEPT + 36
            for data in new:
                if len(data) > {"esp8266": 492}.get(chip, 2048):
                    raise ValueError("buffer too long")
                struct.pack_into("<H", box, at, len(data))
                box[at + 2 : at + 2 + len(data)] = data
            size = struct.unpack_from("<H", box, at)[0]
            return None if new else bytes(box[at + 2 : at + 2 + size])

    # ESP8266 takes 71 minutes at most, and RP2 refuses more.
    def deepsleep(ms):
        if chip == "rp2" and ms > 4294967:
            raise ValueError("sleep too long")
        if chip == "esp8266" and ms > 4294967:
            ms %= 4294967
        struct.pack_into("<I", box, KEPT, ms)
        ask.write(b"D")
        answer.readinto(bytearray(1))

    def lightsleep(ms):
        if chip == "rp2" and any(box[HEAD + SLOT * n + ARMED] for n in range(24)):
            ms = min(ms, 50)
        time.sleep_ms(ms)

    machine.Timer = Timers()
    machine.WDT = WDT
    machine.mem32 = Registers()
    machine.lightsleep = lightsleep
    machine.deepsleep = deepsleep
    machine.RTC = RTC if chip == "rp2" else MemoryRTC
    if chip != "rp2":
        machine.DEEPSLEEP_RESET = 5 if chip == "esp8266" else 4
    machine.dogs = []
    machine.skip = skip
    return clock
