"""Hosts of a job, the network that they share, and the mpirun that starts ranks on them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import pytest

from xray_lightning.errors import UserError
from xray_lightning.training import host_network
from xray_lightning.training.host_list import Host, read_hosts, with_ranks
from xray_lightning.training.host_network import Meeting, agree, shared_network
from xray_lightning.training.mpi_command import TAG, passed_on
from xray_lightning.training.strategies import Mpirun, Torchrun, World, same_clock

ALONE = World("none")
TWO = [Host("a"), Host("b")]
FAR = {"eth0": "10.0.0.7/24", "docker0": "172.17.0.1/16"}
NEAR = {"ib0": "10.0.0.8/24", "docker0": "172.17.0.1/16"}


@pytest.mark.parametrize(
    "hosts",
    [["node1:2", "node2"], "node1:2,node2", "./hostfile", "hostfile"],
)
def test_a_list_a_text_and_a_hostfile_name_the_same_hosts(
    hosts: str | list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostfile").write_text("# ours\n\nnode1 slots=2 max-slots=4\nnode2 # a GPU\n")
    assert read_hosts(hosts) == [Host("node1", 2), Host("node2")]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        (["node1:two"], "ranks of node1=two must be a whole number"),
        ("node1:0", "ranks of node1=0 must be a whole number"),
        (["--help"], "'--help' is no host"),
        ("node1,", "'' is no host"),
        (["a", "a:2"], "names a twice"),
        ([], "names no host"),
        ("./nowhere", "the hostfile cannot be read"),
    ],
)
def test_what_is_no_host_is_refused(hosts: str | list[str], words: str) -> None:
    with pytest.raises(UserError, match=r"strategy\.hosts") as told:
        read_hosts(hosts)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("hosts", "processes", "devices", "ranks"),
    [
        ([Host("a", 2), Host("b", 2)], None, 0, [2, 2]),
        (TWO, 6, 0, [3, 3]),
        ([Host("a", 2), Host("b")], 4, 8, [2, 2]),
        ([Host("127.0.0.1"), Host("b")], None, 4, [4, 4]),
        ([Host("127.0.0.1"), Host("b")], None, 0, [1, 1]),
    ],
)
def test_hosts_have_the_ranks_that_are_given_or_shared_out_or_those_of_this_one(
    hosts: list[Host], processes: int | None, devices: int, ranks: list[int]
) -> None:
    found = with_ranks(hosts, processes=processes, devices=devices)
    assert [host.ranks for host in found] == ranks


@pytest.mark.parametrize(
    ("hosts", "processes", "words"),
    [
        ([Host("198.51.100.1"), Host("198.51.100.2")], None, "cannot be known from here"),
        (TWO, 3, "give a multiple of 2"),
        ([Host("a", 2), Host("b", 1)], None, "a:2, b:1: give each host equally many ranks"),
    ],
)
def test_ranks_that_cannot_be_known_or_differ_are_refused(
    hosts: list[Host], processes: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        with_ranks(hosts, processes=processes, devices=0)


def test_the_shared_network_is_one_in_which_every_host_has_an_address_of_its_own() -> None:
    assert shared_network([FAR, NEAR]) == "10.0.0.0/24"
    assert shared_network([{"docker0": "172.17.0.1/16"}] * 2) is None
    assert shared_network([{"a": "10.1.0.1/24"}, {"a": "10.2.0.1/24"}]) is None
    both = [{"a": f"10.1.0.{n}/24", "b": f"10.2.0.{n}/24"} for n in (1, 2)]
    assert shared_network(both) == "10.1.0.0/24"
    assert shared_network(both, address="10.2.0.1") == "10.2.0.0/24"


def together(ranks: int, call: Callable[[int, Callable[[str], list[str]]], None]) -> None:
    """Call a function of a rank, and of its exchange with the others, for all ranks at once."""
    barrier, texts = Barrier(ranks), [""] * ranks

    def run(rank: int) -> None:
        def exchange(text: str) -> list[str]:
            texts[rank] = text
            barrier.wait(timeout=30)
            told = [*texts]
            barrier.wait(timeout=30)
            return told

        call(rank, exchange)

    threads = [Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_ranks_of_one_host_meet_on_loopback() -> None:
    found: dict[int, Meeting] = {}
    together(2, lambda rank, exchange: found.update({rank: agree(exchange)}))
    assert {meeting.main for meeting in found.values()} == {"127.0.0.1"}
    assert {meeting.own for meeting in found.values()} == {"127.0.0.1"}


def test_an_interface_that_the_user_has_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_network, "own_addresses", lambda: FAR)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    host_network.use_interface("10.0.0.7")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth0"


def test_ranks_elsewhere_get_what_a_run_needs_and_nothing_of_this_host() -> None:
    ours = {"PATH", "OMP_NUM_THREADS", "PYTHONPATH", "NCCL_DEBUG", "WANDB_API_KEY", "LC_ALL"}
    not_theirs = {"CUDA_VISIBLE_DEVICES", "HOME", "TMPDIR", "HOSTNAME", "AWS_SECRET_ACCESS_KEY"}
    names = passed_on(dict.fromkeys(ours | not_theirs, "secret"))
    assert ours < set(names)
    assert not not_theirs & set(names)
    assert "XRAY_LAUNCHED" in names  # set for the ranks alone


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an mpirun on PATH that says this of its version."""

    def write(version: str) -> None:
        (tmp_path / "mpirun").write_text(f"#!/bin/sh\necho '{version}'\n")
        (tmp_path / "mpirun").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return write


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11", ["--prtemca plm_ssh_agent A", "--host a:2,b:2", "-x PATH"]),
        ("mpirun (Open MPI) 4.1.6", ["--mca plm_rsh_agent A", "--host a:2,b:2", "--tag-output"]),
        ("HYDRA build details:", ["-launcher-exec A", "-hosts a:2,b:2", "-prepend-rank"]),
    ],
)
def test_each_mpirun_is_told_hosts_and_agent_in_its_own_words(
    version: str, expected: list[str], mpirun: Callable[[str], None], tmp_path: Path
) -> None:
    mpirun(version)
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\n")
    agent.chmod(0o755)
    strategy = Mpirun(hosts=["a:2", "b:2"], agent=str(agent))
    command = strategy.launch_command(ALONE, devices=0) or []
    text = " ".join(command).replace(str(agent), "A")
    assert command[1:3] == ["-n", "4"]
    assert all(part in text for part in expected), text
    assert command[-3:] == [sys.executable, "-m", "mpi4py"]


def test_an_agent_that_is_not_there_is_refused(mpirun: Callable[[str], None]) -> None:
    mpirun("mpirun (Open MPI) 5.0.11")
    with pytest.raises(UserError, match=r"strategy\.hosts needs no-such-agent"):
        Mpirun(hosts=["a:1", "b:1"], agent="no-such-agent -x").launch_command(ALONE, devices=0)


@pytest.mark.parametrize(
    ("line", "rank", "rest"),
    [
        ("[1,12]<stderr>: [10:00:00] text", "12", "[10:00:00] text"),
        ("[1,0]<stdout>:text", "0", "text"),
        ("[3] text", "3", "text"),
    ],
)
def test_a_line_is_known_by_its_tag(line: str, rank: str, rest: str) -> None:
    tag = TAG.match(line)
    assert tag is not None
    assert (tag["rank"], line[tag.end() :]) == (rank, rest)
    assert TAG.match("[10:00:00] a line of the log") is None


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Torchrun(nodes=2), "strategy.nodes=2 needs strategy.address"),
        (Torchrun(nodes=2, node_rank=2, address="a"), "node_rank=2 must be"),
        (Torchrun(nodes=2, address="a", processes=3), "strategy.processes=3 are all ranks"),
        (Torchrun(nodes=2, address="a", port=70000), "strategy.port=70000 must be"),
    ],
)
def test_several_hosts_of_torchrun_that_cannot_meet_are_refused(
    strategy: Torchrun, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        strategy.launch_command(ALONE, devices=0)


def test_a_start_on_another_machines_clock_is_not_taken_for_one_on_this() -> None:
    assert same_clock("12.5 another", default=3.0) == 3.0
    assert same_clock(None, default=3.0) == 3.0
