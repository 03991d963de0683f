"""A bound on the size of a request, counted while it is read."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.serving.problems import Problem

MAX_BODY_BYTES = 4 * 2**20

# Read and forgotten, so that a client that is still sending hears the answer.
_DISCARDED_BYTES = 8 * MAX_BODY_BYTES


class BodyLimit:
    """Read a request whole before `app` sees it; answer 413 where it is too long."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        total_bytes, more = 0, True
        while more and total_bytes <= _DISCARDED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            total_bytes += len(part)
            if total_bytes <= MAX_BODY_BYTES:
                body += part
            more = message.get("more_body", False)
        if total_bytes > MAX_BODY_BYTES:
            found = f"the body is longer than {MAX_BODY_BYTES} bytes"
            await Problem(413, found, code="body_too_large").response()(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)
