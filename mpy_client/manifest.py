# For freezing the client into firmware (FROZEN_MANIFEST): its code then costs no heap.
package(  # noqa: F821 - a manifest's own word
    "cm",
    files=(
        "about.py",
        "ask.py",
        "console.py",
        "dial.py",
        "files.py",
        "identity.py",
        "link.py",
        "look.py",
        "loop.py",
        "mac.py",
        "run.py",
        "samples.py",
        "switch.py",
    ),
    opt=3,
)
