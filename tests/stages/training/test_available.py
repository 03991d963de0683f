"""How much memory there is, by what Linux says."""

from __future__ import annotations

import pytest

from stages.training.available import available_bytes, choose, group_files

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    8000000 kB\n"
STATUS = "Name:\tpython\nVmPeak:\t 9000000 kB\nVmRSS:\t 1000000 kB\n"
KB = 1024


@pytest.mark.parametrize(
    ("groups", "expected_kb"),
    [
        ([], 9_000_000),
        # No limit: as version 2 and as version 1 write it.
        ([("max\n", "5\n"), ("9223372036854771712\n", "5\n"), ("", "")], 9_000_000),
        # Of 6,000,000 kB, others in the group hold 2,000,000.
        ([(f"{6_000_000 * KB}\n", f"{3_000_000 * KB}\n")], 4_000_000),
        # The narrowest counts, whatever is around it.
        ([(f"{7_000_000 * KB}", f"{1_000_000 * KB}"), (f"{6_500_000 * KB}", "")], 6_500_000),
        # A group that is fuller than it may be has nothing left, and no less.
        ([(f"{1_000_000 * KB}", f"{9_000_000 * KB}")], 0),
        # A limit above what the machine has changes nothing.
        ([(f"{64_000_000 * KB}", f"{1_000_000 * KB}")], 9_000_000),
    ],
)
def test_least_of_machine_and_groups(groups: list[tuple[str, str]], expected_kb: int) -> None:
    """What is free counts with what this process holds, in the machine and in each group."""
    assert choose(MEMINFO, STATUS, groups) == expected_kb * KB


def test_this_machine_has_some() -> None:
    """The real files are read: more than this process holds, less than a petabyte."""
    assert 2**26 < available_bytes() < 2**50


@pytest.mark.parametrize("membership", ["0::/\n", "4:memory:/a/b\n0::/\n", "", "9:cpu,cpuacct:/\n"])
def test_groups_that_are_not_there_limit_nothing(membership: str) -> None:
    """Memberships of version 1 and 2 whose files cannot be read have no limit."""
    assert choose(MEMINFO, STATUS, [("", "") for _ in group_files(membership)]) == 9_000_000 * KB
