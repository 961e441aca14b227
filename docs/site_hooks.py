"""Hooks of mkdocs: what the pages say of the repository's other files becomes plain text."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
"""A link to a file of the repository that is no page."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page in which links to files outside of the site are these files' names."""

    def named(link: re.Match[str]) -> str:
        path = link[2].removeprefix("../").partition("#")[0]
        text = link[1].strip("`")
        return f"`{path}`" if text == path else f"{link[1]} (`{path}`)"

    return OUTSIDE.sub(named, markdown)
