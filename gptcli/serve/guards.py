"""Checks every request first: the page it comes from, the server's name in it, and the key."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptcli.openai_api.refusals import Refusal
from gptcli.serve.transport import ErrorAnswer, to_json

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:/?#@,\s]+))(?::[0-9]*)?", re.IGNORECASE)
_METHODS = "GET, POST, DELETE, OPTIONS"
# Headers of every answer: no sniffing, framing, embedding by other sites' pages, or referrers.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Access:
    """Who may ask. hosts: names in lower case, beside localhost and addresses. origins: of pages beside the server's.

    An origin `*` is all. key: of every request, if there is one. open_paths: those that need none.
    """

    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    key: str | None = None
    open_paths: Collection[str] = ("/", "/health")

    def check(self, path: str, headers: Headers) -> None:
        """Raises Refusal."""
        if "transfer-encoding" in headers and "content-length" in headers:  # a proxy may see another end of the body
            raise Refusal(
                400, "Content-Length and Transfer-Encoding exclude each other", headers={"Connection": "close"}
            )
        self._check_host(headers.getlist("host"))
        origins = headers.getlist("origin")
        for origin in origins:
            if not self.allows_origin(origin, headers["host"]):
                raise Refusal(403, f"pages of {origin[:80]} may not ask: --cors ORIGIN allows them")
        # Browsers send no origin for embedded addresses, such as images; following a link is not embedding.
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and not origins and headers.get("sec-fetch-mode") != "navigate":
            raise Refusal(403, "pages of other sites may not ask: --cors ORIGIN allows them")
        if self.key is not None and path not in self.open_paths and not self._has_key(headers):
            raise Refusal(
                401,
                "an API key is needed, as a bearer token",
                "invalid_api_key",
                {"WWW-Authenticate": "Bearer"},
            )

    def _check_host(self, hosts: list[str]) -> None:
        """Raises Refusal for other names: DNS can make another site's lead here (rebinding), unlike an address."""
        if len(hosts) == 1:
            found = _HOST.fullmatch(hosts[0])
            name = (found[1] or found[2]).lower().rstrip(".") if found else ""
            if name == "localhost" or name.endswith(".localhost") or name in self.hosts or _is_address(name):
                return
        raise Refusal(403, f"not served under the name {', '.join(hosts)[:80] or 'none'}: --allow-host NAME allows one")

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask: the server's own, or an allowed one."""
        return origin in self.origins or "*" in self.origins or origin in (f"http://{host}", f"https://{host}")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.strip().encode(), (self.key or "").strip().encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guarded:
    """An ASGI application behind `Access`. errors: gives the format of errors for a path."""

    def __init__(self, app: ASGIApp, access: Access, errors: Callable[[str], ErrorAnswer]) -> None:
        self._app, self._access, self._errors = app, access, errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, answers a preflight, or passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def decorated(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
                if origin is not None and self._access.allows_origin(origin, headers.get("host", "")):
                    answer["Access-Control-Allow-Origin"] = origin
                    answer["Vary"] = "Origin"
            await send(message)

        preflight = scope["method"] == "OPTIONS" and origin is not None
        try:
            self._access.check("/" if preflight else scope["path"], headers)  # a preflight never has a key
        except Refusal as refusal:
            status, body = self._errors(scope["path"])(refusal)
            await Response(to_json(body), status, refusal.headers, "application/json")(scope, receive, decorated)
            return
        if preflight:
            asked = headers.get("access-control-request-headers", "")
            allowed = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Allow-Headers": asked}
            if "access-control-request-private-network" in headers:
                allowed["Access-Control-Allow-Private-Network"] = "true"
            await Response(b"", 204, allowed)(scope, receive, decorated)
            return
        await self._app(scope, receive, decorated)
