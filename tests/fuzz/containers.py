"""Archives, checkpoints and exported models whose members and descriptions are spoiled.

python -m fuzz archive --minutes 10
"""

import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from fuzz.fuzzing import Fuzzer, altered, spoiled, text_spoiled
from fuzz.manifest import HOSTILE, told
from xray_lightning.data.download.archive import unpack_images
from xray_lightning.data.download.chestmnist import convert
from xray_lightning.deploy.model_card.info import read_checkpoint_info
from xray_lightning.deploy.onnx_backend import OnnxMember, add_metadata, describe, from_texts
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.abstention import Abstention
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_in_checkpoint import (
    Recalibrated,
    abstention_of,
    fitted_entry,
    fitted_of,
)
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.models.checkpoint import as_safetensors, read_checkpoint
from xray_lightning.progress import unseen

# -- tar.gz ----------------------------------------------------------------------------------------

NAMES = (*HOSTILE[:40], *("images/a.png", "images/", "a/" * 300, "/tmp/x.png", "x\\y.png"))
MOST = 2**20  # bytes that an archive may unpack to


def archives(random: Random) -> Iterator[bytes]:
    """Archives of which a member, the tar or the gzip stream is spoiled."""
    whole = tar([(f"images/{name}.png", name.encode() * 40) for name in "abc"])
    while True:
        what = random.random()
        if what < 0.5:
            yield gzip.compress(with_member(random), 1)
        elif what < 0.9:
            yield gzip.compress(spoiled(random, whole, [whole]), 1)
        else:
            packed = gzip.compress(whole, 1)
            yield spoiled(random, packed, [packed])


def tar(files: list[tuple[str, bytes]]) -> bytes:
    return b"".join(map(member, *zip(*files, strict=True))) + bytes(2 * tarfile.BLOCKSIZE)


def member(
    name: str, content: bytes, *, written_as: int = tarfile.PAX_FORMAT, **fields: Any
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    head = info.tobuf(written_as, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def with_member(random: Random) -> bytes:
    """A tar of which one member has odd fields."""
    fields: dict[str, Any] = {}
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice(("size", "type", "linkname", "pax_headers", "mtime", "written_as"))
        fields[key] = {
            "size": random.choice((0, 1, 511, 10**6, 2**33, 2**62)),
            "type": random.choice((*b"0123456789LKxgSXDMNV\0", 255)).to_bytes(1, "big"),
            "linkname": random.choice(NAMES),
            "pax_headers": {
                random.choice(
                    ("path", "size", "linkpath", "GNU.sparse.map", "hdrcharset", "x")
                ): random.choice((*NAMES, "-1", "9" * 40, "0,1,2"))
            },
            "mtime": random.choice((0, 2**40, 1.5)),
            "written_as": random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)),
        }[key]
    name = random.choice(("images/b.png", *NAMES))
    try:
        odd = member(name, b"b" * 100, **fields)
    except (ValueError, OverflowError):  # no tar has this; a spoiled one will do
        odd = b"b" * tarfile.BLOCKSIZE
    return member("images/a.png", b"a" * 100) + odd + tar([("images/c.png", b"c" * 100)])


def judge_archive(path: Path) -> str:
    folder = emptied(path)
    try:
        unpacked = unpack_images(path, folder, most=MOST, advance=lambda read: None)
    except RunFailedError as error:
        told(error)
        unpacked = None
    assert sorted(os.listdir(path.parent)) == sorted([path.name, folder.name]), "outside"
    assert not any(one.name.endswith(".part") for one in folder.rglob("*")), "half a file"
    return "refused" if unpacked is None else "unpacked"


def emptied(path: Path) -> Path:
    folder = path.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# -- npz -------------------------------------------------------------------------------------------


def arrays(random: Random) -> Iterator[bytes]:
    """MedMNIST files of which an array, its head or the zip is spoiled."""
    files = {
        f"{side}_{kind}.npy": array(np.zeros(shape, np.uint8))
        for side in ("train", "val", "test")
        for kind, shape in (("images", (2, 8, 8)), ("labels", (2, 14)))
    }
    whole = zipped(files)
    while True:
        what = random.random()
        if what < 0.6:
            name = random.choice(list(files))
            with_head = random.random() < 0.5
            content = files[name]
            spoilt = (
                content[:10] + text_spoiled(random, content[10:128], [content]) + content[128:]
                if with_head
                else spoiled(random, content, [whole])
            )
            yield zipped(files | {name: spoilt})
        else:
            yield spoiled(random, whole, [whole])


def array(values: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, values, (1, 0))
    return stream.getvalue()


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def judge_arrays(path: Path) -> str:
    folder = emptied(path)
    try:
        assert convert(path, folder, size=8, progress=unseen) >= 0
    except RunFailedError as error:
        told(error)
        return "refused"
    return "converted"


# -- checkpoints and exported models ---------------------------------------------------------------

FINDINGS = ("Effusion", "Mass")


@cache
def entry() -> dict[str, Any]:
    """What a checkpoint that was tested and recalibrated says of itself."""
    values = dict.fromkeys(FINDINGS, 0.25)
    points = OperatingPoints(rule="youden", target=None, images=200, cuts=values)
    calibration = Calibration("platt", images=200, slope=values, intercept=values)
    again = Recalibrated("site", 9, 8, {"Mass": 3}, {"Effusion": "few"}, "ab" * 32, "cd" * 32)
    return {
        "schema_version": 1,
        "findings": list(FINDINGS),
        "model": {"arch": "resnet18", "hidden": [], "dropout": 0.0},
        "normalize": "per_image",
        "image_size": 32,
        "split_sha256": "ab" * 32,
        **fitted_entry(points, calibration, Abstention(0.05, 0.9, 100, values)),
        "recalibrated": again.to_plain(),
    }


def plain_content() -> dict[str, Any]:
    """A checkpoint of a model that only has to be read."""
    return {
        "state_dict": {"backbone.fc.weight": torch.zeros(2, 3), "backbone.fc.bias": torch.ones(2)},
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6",
        "xray": entry(),
    }


def checkpoints(random: Random) -> Iterator[bytes]:
    """Checkpoints whose description, pickle or zip is spoiled."""
    content = plain_content()
    whole = saved(content)
    files = records(whole)
    pickled = next(name for name in files if name.endswith("data.pkl"))
    while True:
        what = random.random()
        if what < 0.5:
            yield saved(altered(random, content) if what < 0.1 else with_entry(random, content))
        elif what < 0.8:
            name = pickled if what < 0.7 else random.choice(list(files))
            yield zipped(files | {name: spoiled(random, files[name], [files[pickled]])})
        else:
            yield spoiled(random, whole, [whole])


def safetensors(random: Random) -> Iterator[bytes]:
    """Checkpoints without pickle, of which the description, the header or any byte is spoiled."""
    content = plain_content()
    whole = as_safetensors(content)
    header_ends = 8 + int.from_bytes(whole[:8], "little")
    header, weights = json.loads(whole[8:header_ends]), whole[header_ends:]
    while True:
        what = random.random()
        if what < 0.4:
            yield as_safetensors(with_entry(random, content))
        elif what < 0.8:
            spoilt = json.dumps(altered(random, header)).encode(errors="replace")
            if what < 0.6:
                spoilt = text_spoiled(random, spoilt, [spoilt])
            yield len(spoilt).to_bytes(8, "little") + spoilt + weights
        else:
            yield spoiled(random, whole, [whole])


def with_entry(random: Random, content: dict[str, Any]) -> dict[str, Any]:
    spoilt = content["xray"]
    for _ in range(random.choice((1, 1, 2))):
        spoilt = altered(random, spoilt)
    return content | {"xray": spoilt}


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def records(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def judge_checkpoint(path: Path) -> str:
    try:
        read_checkpoint_info(path)
        abstention_of(read_checkpoint(path)["xray"])
    except UserError as error:
        told(error)
        return "refused"
    return "read"


def texts(random: Random) -> Iterator[bytes]:
    """The metadata of an exported model, spoiled: a JSON of keys and texts."""
    described = describe(entry(), sha256="ab" * 32)
    whole = Texts(described).metadata
    while True:
        spoilt = dict(whole)
        for _ in range(random.choice((1, 1, 2, 3))):
            key = random.choice(list(spoilt) or ["x"])
            what = random.random()
            if what < 0.1:
                spoilt.pop(key, None)
            elif what < 0.6 and key in described:
                spoilt[key] = json.dumps(altered(random, described[key]))
            else:
                text = spoilt.get(key, "").encode()
                spoilt[key] = text_spoiled(random, text or b" ", [b"{}"]).decode(errors="replace")
        yield json.dumps(spoilt).encode()


class Texts:
    """In the place of an ONNX model: what is added to its metadata."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.metadata: dict[str, str] = {}
        self.metadata_props = self
        add_metadata(self, described)

    def add(self, *, key: str, value: str) -> None:
        self.metadata[key] = value


def judge_texts(path: Path) -> str:
    try:
        described = from_texts(json.loads(path.read_bytes()))
        fitted_of(described)
        abstention_of(described)
        Recalibrated.in_entry(described)
    except UserError as error:
        told(error)
        return "refused"
    assert described["findings"]
    return "read"


@cache
def exported() -> bytes:
    """An exported model that only has to be read."""
    from onnx import TensorProto, helper

    shape = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 1, 32, 32])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 32, 32])
        for name in ("probabilities", "logits")
    ]
    nodes = [
        helper.make_node("Cast", ["images"], [name], to=TensorProto.FLOAT)
        for name in ("probabilities", "logits")
    ]
    graph = helper.make_graph(nodes, "g", shape, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    add_metadata(model, describe(entry(), sha256="ab" * 32))
    return bytes(model.SerializeToString())


def models(random: Random) -> Iterator[bytes]:
    """Exported models of which any byte is spoiled."""
    while True:
        yield spoiled(random, exported(), [exported()])


def judge_model(path: Path) -> str:
    try:
        OnnxMember.of(path.read_bytes(), path=path)
        read_checkpoint_info(path)
    except UserError as error:
        told(error)
        return "refused"
    return "read"


ARCHIVE = Fuzzer(archives, judge_archive)
ARRAYS = Fuzzer(arrays, judge_arrays)
CHECKPOINT = Fuzzer(checkpoints, judge_checkpoint)
SAFETENSORS = Fuzzer(safetensors, judge_checkpoint, file="best.safetensors")
METADATA = Fuzzer(texts, judge_texts)
MODEL = Fuzzer(models, judge_model, file="model.onnx")
