"""The chat page: one file, which runs no other script and fetches nothing but the server's answers."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import Response

from gptcli.serve.transport import Call

_PAGE = Path(__file__).with_name("page.html")


class Page:
    """The page's bytes and its content security policy."""

    def __init__(self) -> None:
        text = _PAGE.read_text(encoding="utf-8")
        hashes = {tag: _hash(re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("script", "style")}
        self._data = text.encode()
        self._headers = {
            # Only the file's script runs, it asks only this server, and no text becomes HTML.
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
                "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                "require-trusted-types-for 'script'; trusted-types 'none'"
            ),
            "Cache-Control": "no-cache",
        }

    async def answer(self, call: Call) -> Response:
        """The page."""
        return Response(self._data, headers=self._headers, media_type="text/html; charset=utf-8")


def _hash(found: re.Match[str] | None) -> str:
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
