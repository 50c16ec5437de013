"""One owner at a time: races, owners that died, paused or moved on, clocks that disagree."""

import json
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from harness import lease as leases
from harness.artifact import build_once
from tests.children import SERVER


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience of seconds, not of a minute."""
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "LIFETIME", 1.0)


def hold(place: Path, connection: Connection, beat: float = 0.1) -> None:
    leases.BEAT = beat
    lease = leases.take(place)
    connection.send(lease is not None)
    connection.recv()
    if lease:
        lease.release()


def holder(place: Path) -> tuple[Any, Connection]:
    ours, its = SERVER.Pipe()
    process = SERVER.Process(target=hold, args=(place, its))
    process.start()
    assert ours.recv()
    return process, ours


def as_if_of_another_machine(place: Path) -> None:
    """The newest lease as this machine sees one that another machine has left: no process to look for."""
    (file,) = place.glob(".lease-*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "kernel": "another", "host": "far"}))


def test_taken_held_and_given_back(tmp_path: Path) -> None:
    first = leases.take(tmp_path)
    assert first
    assert leases.owner(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"
    first.check()
    first.release()
    assert leases.owner(tmp_path) == ""
    second = leases.take(tmp_path)
    assert second
    assert second.number == 2
    with pytest.raises(leases.LostError, match="taken over"):
        first.check()
    second.release()


def test_who_lives_keeps_it_and_who_was_killed_loses_it_at_once(tmp_path: Path, quick: None) -> None:
    process, _ = holder(tmp_path)
    assert leases.take(tmp_path) is None
    process.kill()
    process.join()
    began = time.monotonic()
    lease = leases.take(tmp_path)
    assert lease
    assert time.monotonic() - began < 0.5
    lease.release()


def test_a_paused_owner_is_followed_and_fenced(tmp_path: Path, quick: None) -> None:
    """It cannot be told from one on a machine that was switched off; when it wakes, it may not commit."""
    process, connection = holder(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    follower = leases.take(tmp_path)
    assert follower
    assert 0.9 < time.monotonic() - began < 3
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.5)  # it beats again, into a lease that is over
    follower.check()
    connection.send("end")
    process.join()
    follower.check()  # nor does its release count
    follower.release()
    assert leases.owner(tmp_path) == ""


def test_an_owner_on_a_machine_that_is_gone_is_followed_after_its_time(tmp_path: Path, quick: None) -> None:
    process, _ = holder(tmp_path)
    process.kill()
    process.join()
    as_if_of_another_machine(tmp_path)
    began = time.monotonic()
    lease = leases.take(tmp_path)
    assert lease
    assert time.monotonic() - began > 0.9
    lease.release()


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_clock_but_ones_own_counts(tmp_path: Path, quick: None, hours: int) -> None:
    """Neither the time on the file nor in it is looked at: another machine's clock may be an hour off."""
    process, connection = holder(tmp_path)
    (file,) = tmp_path.glob(".lease-*.json")
    for _ in range(5):
        os.utime(file, (time.time() + 3600 * hours,) * 2)
        assert leases.take(tmp_path) is None
    connection.send("end")
    process.join()


def race(place: Path, tally: Path, connection: Connection) -> None:
    leases.BEAT = 0.05
    connection.recv()
    lease = leases.take(place)
    if lease:
        with tally.open("a") as file:
            file.write(f"{os.getpid()}\n")
    connection.send(lease is not None)
    connection.recv()


def test_of_many_at_once_one_gets_it(tmp_path: Path, quick: None) -> None:
    tally = tmp_path / "tally"
    for attempt in range(50):
        place = tmp_path / f"place{attempt}"
        runners = []
        for _ in range(2):
            ours, its = SERVER.Pipe()
            process = SERVER.Process(target=race, args=(place, tally, its))
            process.start()
            runners.append((process, ours))
        for _, ours in runners:
            ours.send("go")
        assert sorted(ours.recv() for _, ours in runners) == [False, True]
        for process, ours in runners:
            ours.send("end")
            process.join()
    assert len(tally.read_text().splitlines()) == 50


def test_a_slow_taker_does_not_take_a_number_that_was_given_and_forgotten(tmp_path: Path, quick: None) -> None:
    """Two others came and went while it was about to link the number after the one that it saw."""
    first = leases.take(tmp_path)
    assert first
    first.release()
    seen = leases._newest
    came_and_went = iter([1])  # what the slow one saw

    def late(place: Path) -> int:
        return next(came_and_went, None) or seen(place)

    for _ in range(3):
        other = leases.take(tmp_path)
        assert other
        other.release()
    leases._newest = late
    try:
        assert leases.take(tmp_path) is None
    finally:
        leases._newest = seen
    assert other.file.exists()


def build(folder: Path, tally: Path) -> None:
    def make(scratch: Path) -> None:
        with tally.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        (scratch / "a").write_text("whole")

    build_once(folder, make)


def test_an_artifact_is_made_once_and_again_if_its_maker_is_killed(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    killed = SERVER.Process(target=build, args=(tmp_path / "made", tally))
    killed.start()
    while not tally.exists():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert not (tmp_path / "made").exists()
    several = [SERVER.Process(target=build, args=(tmp_path / "made", tally)) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join()
        assert process.exitcode == 0
    assert len(tally.read_text().splitlines()) == 2
    assert (tmp_path / "made" / "a").read_text() == "whole"
    assert not list(tmp_path.glob(".made-*"))
