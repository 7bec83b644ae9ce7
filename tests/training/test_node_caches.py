"""Caches of several hosts: each builds its own where `data.cache_dir` is another place on each."""

import json
import sys
from pathlib import Path

import pytest
from conftest import TRAIN_PY, environment

from benchmarks.network_hosts import lacking, network

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking()), reason=lacking())]

PORT = 29517


def test_two_hosts_with_scratch_of_their_own_build_a_cache_each(
    phantoms: Path, small: list[str], tmp_path: Path
) -> None:
    own = [text for text in small if not text.startswith("data.cache_dir=")]
    train = [TRAIN_PY, *own, "strategy=ddp", "data.cache_dir=${oc.env:SCRATCH}/cache"]
    with network(2) as hosts:
        jobs = []
        for rank, host in enumerate(hosts):
            start = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            start += [f"--master-addr={hosts[0].address}", f"--master-port={PORT}"]
            scratch = {"SCRATCH": str(tmp_path / host.name), "GLOO_SOCKET_IFNAME": host.interface}
            env = environment(**scratch, OMP_NUM_THREADS="1")
            command = [sys.executable, "-m", "torch.distributed.run", *start, *train]
            jobs.append(host.start(command, folder=tmp_path, env=env))
        told = [job.communicate(timeout=240) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    (record,) = tmp_path.glob("runs/*/results.json")
    result = json.loads(record.read_text())
    assert (result["status"], result["environment"]["world_size"]) == ("finished", 2)
    key = result["data"]["cache_key"]
    folders = [tmp_path / host / "cache" / key for host in ("node1", "node2")]
    names = [{path.name for path in folder.iterdir()} - {"lock"} for folder in folders]
    assert names[0] == names[1]
    largest = max(folders[0].iterdir(), key=lambda path: path.stat().st_size)
    assert largest.read_bytes() == (folders[1] / largest.name).read_bytes()  # the pixels
