"""uvicorn on a thread of its own, over a socket that is bound before anything is loaded."""

from __future__ import annotations

import errno
import socket
import threading

import uvicorn
from fastapi import FastAPI

from stages.errors import SettingError

_CLOSING_SECONDS = 2


class HttpServer:
    """An application being served."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            # Its messages go to the log of the process, warnings and worse only.
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        self._server = uvicorn.Server(config)
        # uvicorn leaves signals alone outside the main thread: they belong to the orchestrator.
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._server.should_exit = True
        self._thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises SettingError that names serve.host or serve.port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise _refusal(error, host, port) from error


def url(listener: socket.socket) -> str:
    """Return where the socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refusal(error: OSError, host: str, port: int) -> SettingError:
    if error.errno == errno.EADDRINUSE:
        mend = "stop that program, choose another port, or set serve.port=0 for a free one"
        return SettingError("serve.port", f"found {port}, which another program listens on", mend)
    if error.errno == errno.EACCES:
        mend = "choose a port above 1023, or set serve.port=0 for a free one"
        return SettingError("serve.port", f"found {port}, which needs more rights", mend)
    mend = "set serve.host=127.0.0.1 for this machine alone"
    return SettingError("serve.host", f"found {host!r}, which is no address here ({error})", mend)
