# For freezing the client into firmware: its code then needs no heap, and no file can hide it.
#   make -C ports/rp2 BOARD=RPI_PICO_W FROZEN_MANIFEST=path/of/your/manifest.py
# where your manifest has include("$(PORT_DIR)/boards/manifest.py") and includes this file.
# The board then needs only /cm.json (docs/boards.md).
metadata(  # noqa: F821 - these four functions are defined for manifests
    description="Cloudmanager's client: runs notebook cells on fleets of boards.",
    version="0.1.0",
    license="MIT",
    author="Cloudmanager contributors",
)
package(  # noqa: F821
    "cm",
    files=(
        "about.py",
        "app.py",
        "ask.py",
        "boot.py",
        "clock.py",
        "console.py",
        "dial.py",
        "dog.py",
        "emit.py",
        "facts.py",
        "files.py",
        "firmware.py",
        "hardware.py",
        "identity.py",
        "kept.py",
        "lightsleep.py",
        "link.py",
        "log.py",
        "look.py",
        "loop.py",
        "mac.py",
        "mount.py",
        "net.py",
        "now_ms.py",
        "ota.py",
        "outage.py",
        "restart.py",
        "run.py",
        "scheduler.py",
        "sleep.py",
        "state.py",
        "switch.py",
        "tasks.py",
        "threads.py",
        "ticker.py",
        "trial.py",
        "wake.py",
        "watchdog.py",
    ),
    opt=3,
)
module("cm_start.py", opt=3)  # noqa: F821
module("main.py", opt=3)  # noqa: F821 - a frozen main.py is started in place of /main.py
