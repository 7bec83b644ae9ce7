"""Checkpoints: whole whatever ends the writer, and read without running what they hold."""

import ast
import os
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Canary, Ended, tiny_classifier
from failing_disk import failures
from fitting import data, trainer
from safetensors.torch import save

from xray_lightning.errors import EXIT_USER_ERROR, RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import as_safetensors, read_checkpoint, write_checkpoint

DESCRIBED: dict[str, Any] = {"schema_version": 1, "findings": list(FINDINGS)}
OLD = {"weights": torch.zeros(2000), "xray": DESCRIBED}
NEW = {"weights": torch.ones(2000), "xray": DESCRIBED}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint under its final name, alone in its folder."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint(OLD, path)
    return path


def assert_untouched(path: Path) -> None:
    assert torch.equal(read_checkpoint(path)["weights"], OLD["weights"])
    assert os.listdir(path.parent) == [path.name]


def test_a_saved_checkpoint_replaces_the_one_before_and_clears_halves(
    saved: Path,
) -> None:
    saved.with_name(f".{saved.name}.0123abcd").touch()
    write_checkpoint(NEW, saved)
    assert torch.equal(read_checkpoint(saved)["weights"], NEW["weights"])
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("late", [False, True])
def test_fault_13_14_a_failure_at_any_call_of_a_save_leaves_the_old_checkpoint_or_the_new(
    late: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for told in failures(late, lambda: write_checkpoint(NEW, saved), monkeypatch):
        assert isinstance(told, RunFailedError)
        assert re.match(r".*last\.ckpt cannot be written .*untouched", str(told))
        assert "\n" not in str(told)
        assert os.listdir(saved.parent) == [saved.name]
        weights = read_checkpoint(saved)["weights"]
        assert (weights == weights[0]).all()
        found.append(int(weights[0]))
        write_checkpoint(OLD, saved)
    assert found == [0] * (len(found) - 1) + [int(late)]  # the last call renames
    assert len(found) > 10
    assert int(read_checkpoint(saved)["weights"][0]) == 1


def test_fault_15_a_file_size_limit_keeps_the_old_checkpoint(saved: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(RunFailedError, match=r"last\.ckpt cannot be written"):
            write_checkpoint(NEW, saved)
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
    command = [sys.executable, "-c", KILLER, str(saved), "10"]
    done = Ended.of(command, REPOSITORY, TMPDIR=str(elsewhere))
    assert done.stdout == "survived\n", done.stderr
    assert [path.name for path in saved.parent.iterdir() if path.suffix == ".ckpt"] == ["last.ckpt"]
    write_checkpoint(NEW, saved)
    assert os.listdir(saved.parent) == ["last.ckpt"]  # what the kills have left is cleared away


def truncated(path: Path, _: Canary) -> None:
    os.truncate(path, path.stat().st_size * 6 // 10)


def flipped(path: Path, _: Canary) -> None:
    whole = path.read_bytes()
    middle = whole.index(b"data.pkl") + 60
    path.write_bytes(whole[:middle] + b"\xff" * 8 + whole[middle + 8 :])


def one_bit_of_the_weights(path: Path, _: Canary) -> None:
    """A change of the largest record, which torch.load does not notice."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
        whole[whole.index(archive.read(record)) + record.file_size // 2] ^= 1
    path.write_bytes(whole)


def compressed(path: Path, _: Canary) -> None:
    """What torch.load would unpack, without end if there is none."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


DAMAGES: dict[str, Callable[[Path, Canary], object]] = {
    "absent": lambda path, _: path.unlink(),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
    "compressed": compressed,
    "truncated": truncated,
    "flipped": flipped,
    "one bit of the weights": one_bit_of_the_weights,
    "empty": lambda path, _: path.write_bytes(b""),
    "a page": lambda path, _: path.write_bytes(b"<html>not found</html>"),
    "hostile": lambda path, evil: torch.save({"xray": DESCRIBED, "state_dict": evil}, path),
    "hostile pickle": lambda path, evil: path.write_bytes(pickle.dumps(evil)),
    "config objects": lambda path, _: torch.save({"xray": DESCRIBED, "a": Path("a")}, path),
    "a list": lambda path, _: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_fault_17_19_21_a_bad_checkpoint_is_refused_in_one_line_and_runs_nothing(
    damage: Callable[[Path, Canary], object], saved: Path, tmp_path: Path
) -> None:
    evil = Canary(tmp_path / "canary")
    damage(saved, evil)
    with pytest.raises(UserError) as told:
        read_checkpoint(saved)
    assert told.value.exit_code == EXIT_USER_ERROR
    assert str(saved) in str(told.value)
    assert "\n" not in str(told.value)
    assert not evil.path.exists()


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
    write_checkpoint({"xray": DESCRIBED | change}, saved)
    with pytest.raises(UserError, match=told):
        read_checkpoint(saved, findings=FINDINGS)
    with pytest.raises(UserError, match=told):
        tiny_classifier().on_load_checkpoint({"xray": DESCRIBED | change})


@pytest.mark.parametrize(
    "findings", [None, [], "Mass", ["Mass", "mass"], ["<b>"], [1], {"Mass": 1}]
)
def test_a_checkpoint_without_a_list_of_findings_is_refused(findings: Any, saved: Path) -> None:
    write_checkpoint({"xray": DESCRIBED | {"findings": findings}}, saved)
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
    trainer(tmp_path).fit(tiny_classifier(recipe=recipe), datamodule=module)
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["xray"] == recipe | DESCRIBED | {
        "thresholds": dict.fromkeys(FINDINGS, 0.5),
        "split_sha256": module.usable.split.sha256,
        "trained_on": module.name,
        "weights_seen": [],
    }
    plain = (str, int, float, bool, type(None), torch.Tensor)
    assert {type(value) for value in values(checkpoint) if not isinstance(value, plain)} == set()


def test_fault_20_hyper_parameters_that_call_code_are_not_instantiated(
    phantoms: Path, tmp_path: Path
) -> None:
    module = data(phantoms, tmp_path)
    trainer(tmp_path).fit(tiny_classifier(), datamodule=module)
    canary = tmp_path / "canary"
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    call = {"_target_": "os.system", "command": f"touch {canary}"}
    checkpoint["hyper_parameters"] = {**call, "_instantiator": "os.system", "model": call}
    checkpoint["datamodule_hyper_parameters"] = {**call, "_instantiator": "os.system"}
    hostile = tmp_path / "hostile.ckpt"
    write_checkpoint(checkpoint, hostile)
    read_checkpoint(hostile)
    again = trainer(tmp_path, epochs=2)
    again.fit(tiny_classifier(), datamodule=module, ckpt_path=hostile, weights_only=True)
    assert not canary.exists()


def test_nothing_loads_a_checkpoint_in_a_way_that_could_run_it() -> None:
    for path in (*(REPOSITORY / "xray_lightning").rglob("*.py"), REPOSITORY / "train.py"):
        source = path.read_text(encoding="utf-8")
        assert ".load_from_checkpoint(" not in source, path
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call):
                given = {one.arg: ast.unparse(one.value) for one in call.keywords}
                loads = ast.unparse(call.func) == "torch.load"
                assert given.get("weights_only", str(not loads)) == "True", path


# -- safetensors -----------------------------------------------------------------------------------


def test_a_safetensors_file_holds_the_model_and_what_the_checkpoint_says_of_it(
    tmp_path: Path,
) -> None:
    weights = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state = {"a": weights, "b": weights[0], "loss.weight": torch.ones(2)}
    kept = {"state_dict": state, "xray": DESCRIBED, "epoch": 3, "optimizer_states": [{}]}
    path = tmp_path / "one.safetensors"
    path.write_bytes(as_safetensors(kept))
    found = read_checkpoint(path, findings=FINDINGS)
    assert found.keys() == {"state_dict", "xray", "epoch"}
    assert (found["xray"], found["epoch"]) == (DESCRIBED, 3)
    assert found["state_dict"].keys() == {"a", "b"}
    assert all(torch.equal(found["state_dict"][key], state[key]) for key in ("a", "b"))


def test_without_safetensors_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(as_safetensors({"state_dict": {}, "xray": DESCRIBED}))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for work in (lambda: read_checkpoint(path), lambda: as_safetensors(OLD)):
        with pytest.raises(UserError, match=r"install xray-lightning\[safetensors\]"):
            work()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a safetensors file"),
        (b'\x08\0\0\0\0\0\0\0{"a":[}]', "not a safetensors file"),
        (save({"x": torch.zeros(1)}), "was not written by xray-lightning"),
        (save({"x": torch.zeros(1)}, metadata={"xray": "[" * 9}), "not a safetensors file"),
        (save({"x": torch.zeros(1)}, metadata={"xray": "7"}), "was not written by xray-lightning"),
    ],
)
def test_a_safetensors_file_that_is_no_checkpoint_is_refused_in_one_line(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(said)):
        read_checkpoint(path)
