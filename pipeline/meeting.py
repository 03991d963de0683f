"""Where launched processes meet before they train: what each would train, and where all begin.

The others connect to the first, each with one line of JSON on what it would train and which
checkpoints it has. The first answers with one line, and with its checkpoints where they are
missing. Connections stay open while it works, so that nobody leaves before its last checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import select
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import Refused, Unable
from pipeline.launched import Place
from pipeline.resolved import differences

POLL_SECONDS = 0.1
_GONE = "another process of this training is gone"
_MEND = "run the same command again: it goes on from the last checkpoint"

Wait = Callable[[], None]
"""Called again and again while nobody is there; raises to end the wait."""


@dataclass(slots=True)
class Meeting:
    """What the first process knows of the others; they see it end when it is closed."""

    others: dict[int, socket.socket] = field(default_factory=dict)

    def close(self) -> None:
        """Let the others go."""
        for connection in self.others.values():
            connection.close()
        self.others.clear()


def gather(
    meeting: Meeting, place: Place, made_of: Mapping[str, Any], checkpoints: Path, *, reused: bool,
    check: Wait,
) -> None:  # fmt: skip
    """Wait for all others, and tell them whether to train; `made_of` is what the key is made of.

    Raises Refused, for all, where one of them would train something else.
    """
    told: dict[int, Any] = {}
    with _listening(place) as listener:
        while len(told) < place.size - 1:
            if not select.select([listener], [], [], POLL_SECONDS)[0]:
                check()
                continue
            connection = listener.accept()[0]
            connection.settimeout(60)
            with _reported():
                line = json.loads(_line(connection))
            meeting.others[line["rank"]], told[line["rank"]] = connection, line
    own = json.loads(json.dumps(made_of))
    differing = {rank: differences(line["made_of"], own) for rank, line in told.items()}
    rank = next((rank for rank in sorted(differing) if differing[rank]), None)
    digests = manifests(checkpoints)
    for other, connection in meeting.others.items():
        answer = "differs" if rank is not None else "reused" if reused else "train"
        sends = answer == "train" and told[other]["checkpoints"] != digests
        with _reported():
            connection.sendall(json.dumps({"answer": answer, "sends": sends}).encode() + b"\n")
            if sends:
                _send(connection, checkpoints, digests)
    if rank is not None:
        found = f"process {rank} would train something else: {differing[rank][0]}"
        mend = "give every machine the same command, model, data and versions"
        raise Refused("mlx.launch", found, mend)


@contextmanager
def attend(
    place: Place, made_of: Mapping[str, Any], own: Path, scratch: Path, check: Wait
) -> Iterator[Path | None]:
    """Join the first process for the block; give the checkpoints to go on from, or None.

    None: there is nothing to train. They are `own` where those are the first one's, else they are
    copied into `scratch`. The end of the block waits until the first one has ended its training.
    """
    connection = _connect(place, check)
    with connection:
        line = {"rank": place.rank, "made_of": made_of, "checkpoints": manifests(own)}
        with _reported():
            connection.sendall(json.dumps(line).encode() + b"\n")
            while not select.select([connection], [], [], POLL_SECONDS)[0]:
                check()
            connection.settimeout(60)
            answer = json.loads(_line(connection))
            if answer["sends"]:
                with connection.makefile("rb") as stream:
                    _receive(stream, scratch)
        if answer["answer"] != "train":
            yield None
            return
        try:
            yield scratch if answer["sends"] else own
        except BaseException:
            _await_end(connection)
            raise


def manifests(checkpoints: Path) -> dict[str, str]:
    """Return the SHA-256 of the manifest of each checkpoint in a directory, by its name."""
    found = checkpoints.glob("step-*/manifest.json") if checkpoints.is_dir() else ()
    digests = {}
    for path in found:
        with suppress(OSError):
            digests[path.parent.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


def _send(connection: socket.socket, checkpoints: Path, names: Mapping[str, str]) -> None:
    with (
        connection.makefile("wb") as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for name in sorted(names):
            archive.add(checkpoints / name, arcname=name)


def _receive(stream: Any, scratch: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(scratch, filter="data")


def _connect(place: Place, check: Wait) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(place.address, timeout=5)
        except OSError:
            # It is not there yet: it may have rows to prepare.
            check()
            time.sleep(POLL_SECONDS)
        else:
            return connection


@contextmanager
def _listening(place: Place) -> Iterator[socket.socket]:
    """Listen at the address of the first process, which MLX's ring takes afterwards."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind(place.address)
        except OSError as error:
            where = ":".join(map(str, place.address))
            mend = "give mlx.launch another --starting-port, or mend the hostfile"
            raise Unable("mlx.launch", f"{where}: {error.strerror}".lower(), mend) from None
        listener.listen(place.size)
        yield listener


def _line(connection: socket.socket) -> bytes:
    """Read up to the end of the line, and no byte more: an archive may follow."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionResetError(errno.ECONNRESET, _GONE)
        line += byte
    return bytes(line)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError, tarfile.TarError):
        raise Unable("mlx.launch", _GONE, _MEND) from None


def _await_end(connection: socket.socket) -> None:
    """Wait until the first process has closed its end, though not for ever."""
    with suppress(OSError):
        connection.settimeout(30)
        while connection.recv(1 << 16):
            pass
