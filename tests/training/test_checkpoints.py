"""Checkpoints: whole whatever ends the writer, and read without running what they hold."""

import errno
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, environment, tiny_classifier
from test_fit import data, trainer

from xray_lightning import files as atomic
from xray_lightning.errors import EXIT_RUN_FAILED, EXIT_USER_ERROR, RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.training import callbacks as checkpoints
from xray_lightning.training.callbacks import AtomicCheckpointIO, LastCheckpoint, check_same

DESCRIBED: dict[str, Any] = {"schema_version": 1, "findings": list(FINDINGS)}
OLD = {"weights": torch.zeros(2000), "xray": DESCRIBED}
NEW = {"weights": torch.ones(2000), "xray": DESCRIBED}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint under its final name, alone in its folder."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def assert_untouched(path: Path) -> None:
    assert torch.equal(read_checkpoint(path)["weights"], OLD["weights"])
    assert os.listdir(path.parent) == [path.name]


def test_a_saved_checkpoint_replaces_the_one_before(saved: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert torch.equal(read_checkpoint(saved)["weights"], NEW["weights"])
    assert os.listdir(saved.parent) == [saved.name]


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(checkpoint: object, stream: Any) -> None:
    stream.write(b"PK half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos")


FAILURES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "open": lambda patch: patch.setattr(atomic.tempfile, "mkstemp", no_space),
    "torch.save": lambda patch: patch.setattr(checkpoints.torch, "save", half_written),
    "fsync": lambda patch: patch.setattr(atomic.os, "fsync", no_space),
    "rename": lambda patch: patch.setattr(atomic.os, "replace", no_space),
}


@pytest.mark.parametrize("step", FAILURES)
def test_a_failure_at_any_step_of_a_save_keeps_the_old_checkpoint(
    step: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAILURES[step](monkeypatch)
    with pytest.raises(RunFailedError, match=r"last\.ckpt cannot be written .*untouched") as told:
        AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert told.value.exit_code == EXIT_RUN_FAILED
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert_untouched(saved)


def test_fault_15_a_file_size_limit_keeps_the_old_checkpoint(saved: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(RunFailedError, match=r"last\.ckpt cannot be written"):
            AtomicCheckpointIO().save_checkpoint(NEW, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(saved)


# Forks writers that save without pause, and kills each in the middle of it. The checkpoint is
# large enough that most kills come in mid-write.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.training.callbacks import AtomicCheckpointIO

torch.set_num_threads(1)  # a fork does not survive OpenMP
path, kills = Path(sys.argv[1]), int(sys.argv[2])
described = read_checkpoint(path)["xray"]
wait = random.Random(0)
for kill in range(kills):
    ready, tell = os.pipe()
    writer = os.fork()
    if writer == 0:
        content = {"weights": torch.full((1_000_000,), float(kill)), "xray": described}
        os.write(tell, b"x")
        while True:
            AtomicCheckpointIO().save_checkpoint(content, path)
    os.read(ready, 1)
    time.sleep(wait.uniform(0.0, 0.05))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    weights = read_checkpoint(path)["weights"]
    assert (weights == weights[0]).all(), "half of one, half of another"
print("survived")
"""


def test_fault_13_a_kill_during_a_save_leaves_the_old_checkpoint_or_the_new(
    saved: Path, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(saved), "10"],
        cwd=REPOSITORY,
        env=environment(TMPDIR=str(elsewhere)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "survived\n", done.stderr
    assert [path.name for path in saved.parent.iterdir() if path.suffix == ".ckpt"] == ["last.ckpt"]
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert os.listdir(saved.parent) == ["last.ckpt"]  # what the kills have left is cleared away


class Canary:
    """What a hostile file does when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def with_another_bit(whole: bytes, path: Path) -> bytes:
    """The file with one bit of its largest record changed, which torch.load does not notice."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
        at = whole.index(archive.read(record)) + record.file_size // 2
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def damage(path: Path, how: str, canary: Path) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) * 6 // 10])
    elif how == "flipped":
        middle = whole.index(b"data.pkl") + 60
        path.write_bytes(whole[:middle] + b"\xff" * 8 + whole[middle + 8 :])
    elif how == "one bit of the weights":
        path.write_bytes(with_another_bit(whole, path))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a page":
        path.write_bytes(b"<html>not found</html>")
    elif how == "hostile":
        torch.save({"xray": DESCRIBED, "state_dict": Canary(canary)}, path)
    elif how == "hostile pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif how == "config objects":
        torch.save({"xray": DESCRIBED, "hyper_parameters": Path("a")}, path)
    elif how == "a list":
        torch.save([1, 2], path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    "how",
    [
        "absent",
        "truncated",
        "flipped",
        "one bit of the weights",
        "empty",
        "a page",
        "hostile",
        "hostile pickle",
        "config objects",
        "a list",
    ],
)
def test_fault_17_19_21_a_bad_checkpoint_is_refused_in_one_line_and_runs_nothing(
    how: str, saved: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    damage(saved, how, canary)
    with pytest.raises(UserError) as told:
        read_checkpoint(saved)
    assert told.value.exit_code == EXIT_USER_ERROR
    assert str(saved) in str(told.value)
    assert "\n" not in str(told.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"findings": list(FINDINGS[::-1])}, "Hernia, Pleural_Thickening.*Atelectasis, Cardio"),
        ({"findings": list(FINDINGS[:13])}, "in this order"),
        ({"schema_version": 99}, "schema_version 99, and this version reads 1"),
    ],
)
def test_fault_18_a_checkpoint_of_other_findings_is_refused_showing_both(
    change: dict[str, Any], told: str, saved: Path
) -> None:
    AtomicCheckpointIO().save_checkpoint({"xray": DESCRIBED | change}, saved)
    with pytest.raises(UserError, match=told):
        read_checkpoint(saved, findings=FINDINGS)
    with pytest.raises(UserError, match=told):
        tiny_classifier().on_load_checkpoint({"xray": DESCRIBED | change})


@pytest.mark.parametrize(
    "findings", [None, [], "Mass", ["Mass", "mass"], ["<b>"], [1], {"Mass": 1}]
)
def test_a_checkpoint_without_a_list_of_findings_is_refused(findings: Any, saved: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"xray": DESCRIBED | {"findings": findings}}, saved)
    with pytest.raises(UserError, match="the checkpoint's findings"):
        read_checkpoint(saved)


def test_a_checkpoint_of_findings_of_its_own_is_read() -> None:
    own = tiny_classifier(findings=("Fracture",), backbone=torch.nn.Linear(4, 1))
    content: dict[str, Any] = {}
    own.on_save_checkpoint(content)
    assert content["xray"]["findings"] == ["Fracture"]
    assert content["xray"]["thresholds"] == {"Fracture": 0.5}
    own.on_load_checkpoint(content)
    with pytest.raises(UserError, match=r"Fracture, are not Atelectasis, .*in this order"):
        tiny_classifier().on_load_checkpoint(content)


def test_another_projects_checkpoint_is_refused(saved: Path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, saved)
    with pytest.raises(UserError, match="was not written by xray-lightning"):
        read_checkpoint(saved)


def test_a_checkpoint_of_other_parts_is_refused_with_every_difference() -> None:
    found = {"model": {"arch": "resnet50"}, "image_size": 64, "split_sha256": "a"}
    same = {"model": {"arch": "resnet50"}, "image_size": 64}
    check_same(Path("a.ckpt"), found=found, expected=same)
    with pytest.raises(UserError, match=r"image_size: 64 -> 32; model.arch: resnet50 -> resnet18"):
        check_same(
            Path("a.ckpt"),
            found=found,
            expected={"model": {"arch": "resnet18"}, "image_size": 32},
        )


def values(content: Any) -> list[Any]:
    """Every value of nested mappings and sequences."""
    if isinstance(content, dict):
        return [leaf for item in content.values() for leaf in values(item)] + list(content)
    if isinstance(content, list | tuple):
        return [leaf for item in content for leaf in values(item)]
    return [content]


def test_a_checkpoint_describes_itself_and_holds_plain_values_alone(
    phantoms: Path, tmp_path: Path
) -> None:
    recipe = {"model": {"arch": "linear"}, "normalize": "per_image", "image_size": 32}
    module = data(phantoms, tmp_path)
    trainer(tmp_path, epochs=1).fit(tiny_classifier(recipe=recipe), datamodule=module)
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["xray"] == recipe | DESCRIBED | {
        "thresholds": dict.fromkeys(FINDINGS, 0.5),
        "split_sha256": module.usable.split.sha256,
    }
    plain = (str, int, float, bool, type(None), torch.Tensor)
    assert {type(value) for value in values(checkpoint) if not isinstance(value, plain)} == set()


def test_fault_20_hyper_parameters_that_call_code_are_not_instantiated(
    phantoms: Path, tmp_path: Path
) -> None:
    trainer(tmp_path, epochs=1).fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    canary = tmp_path / "canary"
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    call = {"_target_": "os.system", "command": f"touch {canary}"}
    checkpoint["hyper_parameters"] = {**call, "_instantiator": "os.system", "model": call}
    checkpoint["datamodule_hyper_parameters"] = {**call, "_instantiator": "os.system"}
    hostile = tmp_path / "hostile.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, hostile)
    read_checkpoint(hostile)
    trainer(tmp_path, epochs=2).fit(
        tiny_classifier(),
        datamodule=data(phantoms, tmp_path),
        ckpt_path=hostile,
        weights_only=True,
    )
    assert not canary.exists()


def test_nothing_loads_a_checkpoint_in_a_way_that_could_run_it() -> None:
    for path in (*(REPOSITORY / "xray_lightning").rglob("*.py"), REPOSITORY / "train.py"):
        source = path.read_text(encoding="utf-8")
        assert ".load_from_checkpoint(" not in source, path
        assert not re.search(r"weights_only\s*=\s*False", source), path
        loads = re.findall(r"torch\.load\(.*", source)
        assert all("weights_only=True" in load for load in loads), path


class Saves(LastCheckpoint):
    """Remembers the epochs after which it saved; each save takes this long on its own clock."""

    def __init__(self, path: Path, clock: "Ticking", *, seconds: float, most_time: float) -> None:
        super().__init__(path, most_time=most_time)
        self.epochs: list[int] = []
        self._clock, self._seconds = clock, seconds

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        before = self.path.stat().st_mtime_ns if self.path.exists() else None
        self._clock.next_step = self._seconds
        super().on_train_epoch_end(trainer, pl_module)
        self._clock.next_step = 0.0
        if self.path.stat().st_mtime_ns != before:
            self.epochs.append(trainer.current_epoch)
        self._clock.now += 10.0  # an epoch


class Ticking:
    """A clock that moves by `next_step` after it has been read."""

    def __init__(self) -> None:
        self.now, self.next_step = 1000.0, 0.0

    def __call__(self) -> float:
        now = self.now
        self.now += self.next_step
        return now


@pytest.mark.parametrize(
    "seconds, most_time, expected",
    [
        (0.01, 0.02, [0, 1, 2, 3, 4, 5, 6]),  # cheap: after every epoch
        (0.5, 0.02, [0, 3, 6]),  # half a second for each 25
        (30.0, 0.02, [0, 6]),  # the first and the last at any price
        (30.0, 1, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_state_is_saved_as_often_as_its_share_of_the_time_allows(
    seconds: float,
    most_time: float,
    expected: list[int],
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Ticking()
    monkeypatch.setattr(checkpoints, "monotonic", clock)
    saves = Saves(tmp_path / "kept.ckpt", clock, seconds=seconds, most_time=most_time)
    fit = trainer(tmp_path, epochs=7)
    fit.callbacks = [saves]
    fit.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    assert saves.epochs == expected
    assert read_checkpoint(saves.path)["epoch"] == 6


@pytest.mark.parametrize("most_time", [0, -1, 1.5, "all"])
def test_a_share_of_the_time_that_is_none_is_refused_by_its_key(most_time: Any) -> None:
    with pytest.raises(UserError, match=r"callbacks\.last\.most_time=.* above 0, at most 1"):
        LastCheckpoint("last.ckpt", most_time=most_time)
