"""A hook of MkDocs: a page's links to files of the repository that are no pages.

On a page in the repository `../conf/train.yaml` is a link that works. The built site has no such file; there the link
goes to the repository where `repo_url` is set, and else only its text stays.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>\.\.?/[^)\s]+)\)")
BRANCH = "main"


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs with every page before it is rendered."""
    return resolved(markdown, page.file.src_uri, config.repo_url or "")


def resolved(markdown: str, source: str, repository: str) -> str:
    """The page at `source` (its path in docs/) with its links out of docs/ replaced."""

    def replaced(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), match["target"]))
        if path.startswith("docs/"):
            return match[0]
        return f"[{match['words']}]({repository.rstrip('/')}/blob/{BRANCH}/{path})" if repository else match["words"]

    return LINK.sub(replaced, markdown)
