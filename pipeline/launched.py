"""This process's place among those that `mlx.launch` started to train together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Refused, Unable


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the launched processes this is, and where they meet."""

    rank: int
    size: int
    on_this_host: int
    """How many of them share this machine's cores."""
    address: tuple[str, int]
    """Host and port at which the first one is reached before they train."""

    @property
    def leads(self) -> bool:
        """Tell whether this process records the run."""
        return self.rank == 0


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """Return the place that mlx.launch gave this process; None: it runs alone.

    Raises Unable for an unreadable list of hosts, Refused for MPI: its processes have no address.
    """
    if int(variables.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        raise Refused("mlx.launch", "found --backend mpi", "use --backend ring")
    if "MLX_RANK" not in variables:
        return None
    rank = int(variables["MLX_RANK"])
    if hosts := _listed(variables, "MLX_HOSTFILE"):
        machines = [addresses[0].rpartition(":")[0] for addresses in hosts]
        host, _, port = hosts[0][0].rpartition(":")
        found = Place(rank, len(hosts), machines.count(machines[rank]), (host, int(port)))
    elif devices := _listed(variables, "MLX_IBV_DEVICES"):
        host, _, port = variables["MLX_JACCL_COORDINATOR"].rpartition(":")
        found = Place(rank, len(devices), 1, (host, int(port)))
    elif "MLX_WORLD_SIZE" in variables:
        address = (variables["NCCL_HOST_IP"], int(variables["NCCL_PORT"]))
        found = Place(rank, int(variables["MLX_WORLD_SIZE"]), 1, address)
    else:
        return None
    return found if found.size > 1 else None


def _listed(variables: Mapping[str, str], name: str) -> list[list[str]]:
    """Return the list in the file that a variable names; a single process has an empty file."""
    if name not in variables:
        return []
    path = Path(variables[name])
    try:
        text = path.read_text(encoding="utf-8").strip()
        found: list[list[str]] = json.loads(text) if text else []
    except (OSError, ValueError) as error:
        raise Unable(name, f"{path} is no list of hosts ({error})", "start it anew") from None
    return found
