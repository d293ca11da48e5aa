# For freezing the client into firmware (FROZEN_MANIFEST): its code then costs no heap.
package(  # noqa: F821 - a manifest's own word
    "cm",
    files=(
        *("link.py", "run.py", "dial.py", "console.py", "ask.py", "loop.py"),
        *("boot.py", "net.py", "app.py"),
    ),
    opt=3,
)
