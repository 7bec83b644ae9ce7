"""Preflight checks of a job: its ranks and devices, and whether all hosts have equal code and data.

Ranks with different versions or data would train one model together without any error.
"""

import hashlib
import json
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import UserError
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import git_commit
from xray_lightning.training.heartbeat import Member
from xray_lightning.training.strategies import World, gather
from xray_lightning.training.torchrun_rendezvous import not_shared

PACKAGES = ("torch", "lightning", "xray-lightning")
DATA = ("data manifest", "split", "cache key")
SHOWN = 12  # characters of a hash: enough to tell two apart


@dataclass(frozen=True)
class RollCall:
    """The ranks of a job.

    Attributes:
        members: all ranks in their order.
        devices: each rank's device.
    """

    members: list[Member]
    devices: list[str]

    @property
    def hosts(self) -> list[str]:
        """The hosts, in the order of their first rank."""
        return list(dict.fromkeys(member.host for member in self.members))

    def table(self) -> Table:
        """A row for each rank."""
        table = Table(title=f"{len(self.members)} ranks on {len(self.hosts)} hosts")
        for title in ("rank", "host", "device", "address"):
            table.add_column(title)
        for member, device in zip(self.members, self.devices, strict=True):
            table.add_row(str(member.rank), member.host, device, member.address)
        return table


def call_roll(world: World, *, device: str, address: str, folder: Path) -> RollCall:
    """Gather each rank's host, address, device and versions. A collective.

    Args:
        device: this rank's device.
        address: of this rank's host, by which the others reach it.
        folder: the run folder.

    Raises:
        UserError: versions that differ between hosts, or a host without the run folder.
    """
    said = {
        "host": socket.gethostname(),
        "address": address,
        "device": device,
        "versions": versions(),
    }
    told = [json.loads(text) for text in gather(world, "roll", json.dumps(said))]
    members = [Member(rank, one["host"], one["address"]) for rank, one in enumerate(told)]
    refuse_differences({one["host"]: one["versions"] for one in told}, advice="install the same")
    roll = RollCall(members, [one["device"] for one in told])
    if len(roll.hosts) > 1:  # rank 0 has written its record by now
        found = gather(world, "folder", "yes" if (folder / RESULTS).is_file() else "")
        lacking = [one for one, there in zip(members, found, strict=True) if not there]
        if lacking:
            raise not_shared(lacking[0].host, folder.absolute(), of=members[0].host)
    return roll


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, and the commit, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:  # a checkout that was never installed
            found[package.replace("-", "_")] = "not installed"
    return found | {"git commit of xray_lightning": git_commit() or "none"}


def check_data(world: World, data: XrayDataModule, *, hosts: Sequence[str], builds: bool) -> None:
    """Have every host read its data and build its cache, then compare the hosts. A collective.

    Args:
        hosts: each rank's host name.
        builds: whether this rank builds its host's cache, while that host's other ranks wait.

    Raises:
        UserError: a host cannot read its data, or the hosts differ; raised on every rank.
    """
    problem, facts = "", dict[str, str]()
    for part in (True, False):  # first the ranks that build, then the others
        if part == builds:
            problem, facts = _read(data, builds=builds)
        said = json.dumps([problem, facts])
        told = [json.loads(text) for text in gather(world, "data", said)]
        for host, (failed, _) in zip(hosts, told, strict=True):
            if failed:
                raise UserError(f"host {host}: {failed}")
    refuse_differences(
        {host: found for host, (_, found) in zip(hosts, told, strict=True)},
        advice="copy the data with their times (rsync -a), or share them",
    )


def _read(data: XrayDataModule, *, builds: bool) -> tuple[str, dict[str, str]]:
    try:
        if builds:
            data.prepare_data()
        data.load()
        key = data.image_set.key(data.image_size) if data.cache == "disk" else "none"
        hashes = (manifest_sha256(data), data.usable.split.sha256, key)
        return "", dict(zip(DATA, hashes, strict=True))
    except UserError as error:
        return str(error), {}


def manifest_sha256(data: XrayDataModule) -> str:
    """SHA-256 of the manifest's rows; of each path it covers only whether it is set."""
    table = data.manifest.table.assign(path=data.manifest.table["path"] != "")
    rows = pd.util.hash_pandas_object(table.astype(str), index=False).to_numpy()
    return hashlib.sha256(rows.tobytes()).hexdigest()


def refuse_differences(found: Mapping[str, Mapping[str, Any]], *, advice: str) -> None:
    """Refuse hosts that differ from the first.

    Args:
        found: each host's values by name.
        advice: what to do about it.

    Raises:
        UserError: a host differs; the message has each name whose value differs, with both values.
    """
    (first, expected), *others = found.items()
    for host, values in others:
        different = [
            f"{name} {_short(value)} on {first}, {_short(values.get(name))} on {host}"
            for name, value in expected.items()
            if values.get(name) != value
        ]
        if different:
            raise UserError(f"the hosts differ: {'; '.join(different)}; {advice}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 3 * SHOWN else text[:SHOWN]
