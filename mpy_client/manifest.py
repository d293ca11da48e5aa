# For freezing the client into firmware (FROZEN_MANIFEST): its code then uses no heap.
package(  # noqa: F821 - defined for manifests
    "cm",
    files=(
        "about.py",
        "app.py",
        "ask.py",
        "boot.py",
        "console.py",
        "dial.py",
        "files.py",
        "identity.py",
        "link.py",
        "look.py",
        "loop.py",
        "mac.py",
        "net.py",
        "run.py",
        "samples.py",
        "switch.py",
        "ticker.py",
    ),
    opt=3,
)
