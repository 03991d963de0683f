"""Launched processes know their place, and agree before they train."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import launched, meeting
from pipeline.errors import Refused, Unable
from pipeline.launched import Place

RING = [["10.0.0.1:5000"], ["10.0.0.1:5001"], ["10.0.0.2:5002", "10.0.1.2:5003"]]


def listed(directory: Path, hosts: Any) -> str:
    path = directory / "hosts"
    path.write_text(json.dumps(hosts) if hosts else "\n")
    return str(path)


def test_place_in_each_back_end(tmp_path: Path) -> None:
    """Of a ring, each address is a process and each host a machine; others name a coordinator."""
    ring = {"MLX_HOSTFILE": listed(tmp_path, RING)}
    first = ("10.0.0.1", 5000)
    assert launched.place({**ring, "MLX_RANK": "1"}) == Place(1, 3, 2, first)
    assert launched.place({**ring, "MLX_RANK": "2"}) == Place(2, 3, 1, first)
    nccl = {"MLX_RANK": "0", "MLX_WORLD_SIZE": "2", "NCCL_HOST_IP": "10.0.0.1", "NCCL_PORT": "5"}
    assert launched.place(nccl) == Place(0, 2, 1, ("10.0.0.1", 5))
    devices = tmp_path / "devices"
    devices.write_text(json.dumps([[None, "rdma_en1"], ["rdma_en1", None]]))
    jaccl = {"MLX_RANK": "1", "MLX_IBV_DEVICES": str(devices), "MLX_JACCL_COORDINATOR": "a:7"}
    assert launched.place(jaccl) == Place(1, 2, 1, ("a", 7))


def test_no_place_where_nothing_is_shared(tmp_path: Path) -> None:
    """One process is alone, launched or not; of MPI nobody knows an address; a list may be gone."""
    assert launched.place({}) is None
    assert launched.place({"MLX_RANK": "0", "MLX_HOSTFILE": listed(tmp_path, [])}) is None
    with pytest.raises(Refused, match="found --backend mpi; use --backend ring"):
        launched.place({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(Unable, match="is no list of hosts"):
        launched.place({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "gone")})


def met(
    tmp_path: Path, made_of: tuple[Any, Any], *, reused: bool = False
) -> tuple[Path | None, Exception | None]:
    """Let two processes meet; return the second's checkpoints, and what the first raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    raised: list[Exception] = []
    first = meeting.Meeting()

    def lead() -> None:
        try:
            meeting.gather(first, Place(0, 2, 2, address), made_of[0], tmp_path / "0",
                           reused=reused, check=lambda: None)  # fmt: skip
        except Refused as error:
            raised.append(error)

    thread = threading.Thread(target=lead)
    thread.start()
    scratch = tmp_path / "scratch"
    with meeting.attend(Place(1, 2, 2, address), made_of[1], tmp_path / "1", scratch,
                        lambda: None) as found:  # fmt: skip
        thread.join()
    first.close()
    return found, raised[0] if raised else None


def checkpoint(directory: Path, step: int, content: bytes) -> None:
    path = directory / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_bytes(content)
    (path / "tensors.safetensors").write_bytes(content * 100_000)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*") if path.is_file()}  # fmt: skip


def test_all_begin_with_the_checkpoints_of_the_first(tmp_path: Path) -> None:
    """They are copied whole, whatever others the second has; not where it has the same."""
    checkpoint(tmp_path / "0", 4, b"four")
    checkpoint(tmp_path / "0", 2, b"two")
    checkpoint(tmp_path / "1", 9, b"nine")
    found, error = met(tmp_path, ({"a": 1}, {"a": 1}))
    assert (found, error) == (tmp_path / "scratch", None)
    assert files(tmp_path / "scratch") == files(tmp_path / "0")
    (tmp_path / "1").rename(tmp_path / "old")
    checkpoint(tmp_path / "1", 4, b"four")
    checkpoint(tmp_path / "1", 2, b"two")
    assert met(tmp_path, ({"a": 1}, {"a": 1})) == (tmp_path / "1", None)


def test_none_trains_what_is_there_or_differs(tmp_path: Path) -> None:
    """The second learns that the first has the result; of a difference, the first names it."""
    assert met(tmp_path, ({"a": 1}, {"a": 1}), reused=True) == (None, None)
    found, error = met(tmp_path, ({"upstream": {"model": "x"}}, {"upstream": {"model": "y"}}))
    assert found is None
    assert 'process 1 would train something else: upstream.model: "y" there, "x" here' in str(error)
