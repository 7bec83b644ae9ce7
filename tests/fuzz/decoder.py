"""The decoder under spoiled images: pixels, or UnreadableImageError, and nothing else.

python -m fuzz image --minutes 10
python -m fuzz dicom --minutes 10
"""

import io
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from dicoms import dataset, encapsulated, lookup_table, recoded, run_length_encoded
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from fuzz.fuzzing import NUMBERS, Fuzzer, spoiled
from xray_lightning.data.decode_resize import UnreadableImageError, decode_gray

PNG = b"\x89PNG\r\n\x1a\n"


def judge(path: Path) -> str:
    try:
        pixels = decode_gray(path)
    except UnreadableImageError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return "refused"
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2
    return "decoded"


def images(random: Random) -> Iterator[bytes]:
    """Spoiled PNG and JPEG files without end."""
    whole = rasters()
    while True:
        content = random.choice(whole)
        if content.startswith(PNG) and random.random() < 0.6:
            yield with_checksums(random, content, whole)
        else:
            yield spoiled(random, content, whole)


def dicoms(random: Random) -> Iterator[bytes]:
    """Spoiled DICOM files without end."""
    whole = radiographs()
    while True:
        content = random.choice(whole)
        spoil = with_elements if random.random() < 0.5 else spoiled
        yield spoil(random, content, whole)


def rasters() -> list[bytes]:
    """A small image in every mode of PNG and JPEG."""
    ramp = np.add.outer(np.arange(24), np.arange(0, 200, 8)).astype(np.uint8)
    gray, wide = Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 257)
    found = [encoded(wide, "PNG"), encoded(gray.convert("P"), "PNG", transparency=3)]
    found += [encoded(gray.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    found += [encoded(gray.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    return [*found, encoded(gray, "JPEG", progressive=True)]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def radiographs() -> list[bytes]:
    """Small DICOM files of many kinds."""
    ramp = np.add.outer(np.arange(24), np.arange(0, 200, 8))
    small, wide = ramp.astype(np.uint8), (ramp * 16).astype(np.uint16)
    table = lookup_table(np.arange(256, dtype=np.uint16))
    made = [
        dataset(small),
        dataset(wide, bits=12, WindowCenter=1000, WindowWidth=2000, RescaleSlope=2),
        dataset(
            wide.astype(np.int16), PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0
        ),
        dataset(small, VOILUTSequence=[table], ModalityLUTSequence=[table]),
        dataset(np.repeat(small[..., None], 3, axis=2)),
        run_length_encoded(dataset(wide, bits=12)),
    ]
    for syntax, kind in ((JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")):
        options = {"no_jp2": True} if kind == "JPEG2000" else {}
        stream = encoded(Image.fromarray(small), kind, **options)
        made.append(encapsulated(dataset(small), stream, syntax))
    return [*map(written, made), *(lossless(written(made[1]), name) for name in LOSSLESS)]


LOSSLESS = ("JPEGLosslessProcess14_1", "JPEGLSLossless")


def lossless(content: bytes, syntax: str) -> bytes:
    """The file in another transfer syntax, by its name in GDCM."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        path.write_bytes(content)
        return recoded(path, Path(folder) / "b.dcm", syntax).read_bytes()


def written(made: Dataset) -> bytes:
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def with_checksums(random: Random, content: bytes, others: list[bytes]) -> bytes:
    """A PNG of which one chunk is spoiled, under a checksum that is right."""
    chunks, place = [], len(PNG)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = random.randrange(len(chunks))
    kind, inside = chunks[chosen]
    if kind == b"IDAT" and random.random() < 0.7:
        inside = zlib.compress(spoiled(random, zlib.decompress(inside), others))
    else:
        inside = spoiled(random, inside, others)
    chunks[chosen] = (kind, inside)
    if random.random() < 0.1:
        random.shuffle(chunks)
    return PNG + b"".join(
        len(part).to_bytes(4, "big") + name + part + zlib.crc32(name + part).to_bytes(4, "big")
        for name, part in chunks
    )


WHOLE = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel")
TEXTS = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames")


def with_elements(random: Random, content: bytes, others: list[bytes]) -> bytes:
    """A DICOM file of which some elements say something else, or are gone."""
    made = dcmread(io.BytesIO(content))
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice((*WHOLE, "PixelRepresentation", *TEXTS, "PixelData"))
        if random.random() < 0.15:
            if name in made:
                delattr(made, name)
        elif name in TEXTS:
            value = str(random.choice((*NUMBERS, -1, "1e300", "-1e-300", 0.5)))
            setattr(made, name, value[: 12 if name == "NumberOfFrames" else 16].split(".")[0])
        elif name == "PixelData":
            setattr(made, name, spoiled(random, made.get(name) or b"", others))
        else:
            setattr(made, name, random.choice(NUMBERS) % 65536)
    try:
        return written(made)
    except Exception:  # noqa: BLE001 - pydicom does not write every nonsense
        return spoiled(random, content, others)


IMAGE = Fuzzer(images, judge)
DICOM = Fuzzer(dicoms, judge)
