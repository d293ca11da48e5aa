"""Checks the links between the pages of a built site: ``python -m tests.site_links build/site``.

Sphinx checks the links of the sources; this checks what it made of them, and what it does not know:
pictures, downloads, and anchors in generated pages.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Pages of Sphinx's own: a search form, which gets its content from a script.
LEFT_OUT = {"search.html", "genindex.html"}


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)
            elif value and (name == "src" or (name == "href" and tag in ("a", "link"))):
                self.links.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield a line for each link to a file or an anchor that does not exist."""
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.name not in LEFT_OUT
    }
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            if not target.is_relative_to(site) or not target.is_file():
                yield f"{path.relative_to(site)}: {link} does not exist"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: {link} has no such anchor"


def main() -> None:
    """Print the broken links; the exit status is 1 if there are any."""
    found = list(broken_links(Path(sys.argv[1]).resolve()))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
