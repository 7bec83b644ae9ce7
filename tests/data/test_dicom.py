"""DICOM files become what a workstation shows, compared with pydicom's own pipeline."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REAL, environment, real_data
from dicoms import (
    PERSON,
    Array,
    dataset,
    encapsulated,
    lookup_table,
    recoded,
    run_length_encoded,
    saved,
)
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from xray_lightning.data.decode_resize import UnreadableImageError, decode_gray, read_gray
from xray_lightning.data.image_files import find_files


@pytest.fixture
def twelve() -> Array:
    """Values of 12 bits, 48 x 64, that leave some of the range unused."""
    ramp = np.add.outer(np.linspace(100, 2000, 48), np.linspace(0, 1500, 64))
    return (ramp + np.random.default_rng(0).integers(0, 50, ramp.shape)).astype(np.uint16)


def by_pydicom(path: Path) -> Array:
    """The image as pydicom's pipeline gives it, spread from 0 to 255."""
    made = dcmread(path)
    values = apply_modality_lut(pixel_array(made), made)
    seen = np.asarray(apply_voi_lut(values, made), dtype=np.float64)
    if "VOILUTSequence" in made:
        low, high = 0.0, 2.0 ** made.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowWidth" in made:
        low, high = ends_of_windowing(made)
    else:
        low, high = seen.min(), seen.max()
    gray = 255 * (seen - low) / (high - low)
    return 255 - gray if made.PhotometricInterpretation == "MONOCHROME1" else gray


def ends_of_windowing(made: Dataset) -> tuple[float, float]:
    """What pydicom maps the ends of a window to: the ends of the values that can be stored."""
    bits, signed = made.BitsStored, made.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = made.get("RescaleSlope", 1), made.get("RescaleIntercept", 0)
    return low * slope + intercept, high * slope + intercept


def refused(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode_gray(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert not [mark for mark in PERSON.values() if mark in message.removeprefix(str(path))]
    return message


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 1500, "WindowWidth": 2000},
        {"WindowCenter": ["1500", "40"], "WindowWidth": ["2000", "400"]},
        {"WindowCenter": 1500, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": 2, "RescaleIntercept": -1024},
        {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 2000, "WindowWidth": 3000},
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1500, "WindowWidth": 2000},
        {"PhotometricInterpretation": "MONOCHROME1"},
    ],
    ids=lambda elements: " ".join(f"{k}={v}" for k, v in elements.items()) or "nothing",
)
def test_a_file_is_shown_as_pydicoms_pipeline_shows_it(
    elements: dict[str, Any], twelve: Array, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.dcm", dataset(twelve, bits=12, **elements))
    assert np.abs(decode_gray(path) - by_pydicom(path)).max() <= 0.5 + 1e-6


def test_a_voi_lut_goes_before_a_window(twelve: Array, tmp_path: Path) -> None:
    table = lookup_table((np.linspace(0, 1, 4096) ** 2 * 65535).astype(np.uint16))
    window = {"WindowCenter": 10, "WindowWidth": 20}
    path = saved(tmp_path / "a.dcm", dataset(twelve, bits=12, VOILUTSequence=[table], **window))
    assert np.abs(decode_gray(path) - by_pydicom(path)).max() <= 0.5 + 1e-6


def test_a_modality_lut_stands_in_for_slope_and_intercept(twelve: Array, tmp_path: Path) -> None:
    table = lookup_table((np.linspace(1, 0, 4096) * 65535).astype(np.uint16))
    table.ModalityLUTType = "US"
    path = saved(tmp_path / "a.dcm", dataset(twelve, bits=12, ModalityLUTSequence=[table]))
    assert np.abs(decode_gray(path) - by_pydicom(path)).max() <= 0.5 + 1e-6


def test_fault_59_monochrome1_equals_its_monochrome2_twin(twelve: Array, tmp_path: Path) -> None:
    twin = saved(tmp_path / "2.dcm", dataset(twelve, bits=12))
    turned = dataset(4095 - twelve, bits=12, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_gray(saved(tmp_path / "1.dcm", turned)), decode_gray(twin))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_fault_59_bits_and_sign_do_not_change_the_image(
    bits: int, signed: bool, twelve: Array, tmp_path: Path
) -> None:
    scaled = twelve.astype(np.float64) / 4095 * (2**bits - 1)
    stored = np.floor(scaled).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    kind = ("int" if signed else "uint") + ("8" if bits == 8 else "16")
    path = saved(tmp_path / "a.dcm", dataset(stored.astype(kind), bits=bits))
    spread = (scaled - scaled.min()) / (scaled.max() - scaled.min()) * 255
    assert np.abs(decode_gray(path) - spread).max() <= 1.5
    assert np.abs(decode_gray(path) - by_pydicom(path)).max() <= 0.5 + 1e-6


def test_fault_59_several_frames_are_refused_by_their_number(twelve: Array, tmp_path: Path) -> None:
    made = dataset(twelve, bits=12, NumberOfFrames=2)
    made.PixelData = twelve.tobytes() * 2
    assert "2 frames" in refused(saved(tmp_path / "a.dcm", made))


def test_padding_is_black_and_does_not_count(twelve: Array, tmp_path: Path) -> None:
    stored = twelve.copy()
    stored[:, :8] = 4095
    path = saved(tmp_path / "a.dcm", dataset(stored, bits=12, PixelPaddingValue=4095))
    found = decode_gray(path)
    assert not found[:, :8].any()
    assert found[:, 8:].max() == 255
    made = dataset(stored, bits=12, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1")
    assert not decode_gray(saved(tmp_path / "b.dcm", made))[:, :8].any()


def test_an_image_of_one_value_is_black(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", dataset(np.full((9, 7), 300, dtype=np.uint16), bits=12))
    np.testing.assert_array_equal(decode_gray(path), np.zeros((9, 7)))


def test_colour_becomes_luma(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(
        decode_gray(saved(tmp_path / "a.dcm", dataset(colours))), expected
    )


# -- transfer syntaxes ---------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_byte_orders_hold_the_same_image(syntax: str, twelve: Array, tmp_path: Path) -> None:
    made = dataset(twelve, bits=12)
    expected = decode_gray(saved(tmp_path / "a.dcm", made))
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = twelve.astype(">u2").tobytes()
    made.save_as(
        tmp_path / "b.dcm",
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax == ImplicitVRLittleEndian,
        enforce_file_format=True,
    )
    np.testing.assert_array_equal(decode_gray(tmp_path / "b.dcm"), expected)


def test_run_lengths_hold_the_same_image(twelve: Array, tmp_path: Path) -> None:
    expected = decode_gray(saved(tmp_path / "a.dcm", dataset(twelve, bits=12)))
    path = saved(tmp_path / "b.dcm", run_length_encoded(dataset(twelve, bits=12)))
    np.testing.assert_array_equal(decode_gray(path), expected)


@pytest.mark.parametrize(
    "syntax",
    ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"],
)
def test_lossless_compression_holds_the_same_image(
    syntax: str, twelve: Array, tmp_path: Path
) -> None:
    plain = saved(tmp_path / "a.dcm", dataset(twelve, bits=12))
    packed = recoded(plain, tmp_path / "b.dcm", syntax)
    np.testing.assert_array_equal(decode_gray(packed), decode_gray(plain))


def test_a_baseline_jpeg_is_pillows(twelve: Array, tmp_path: Path) -> None:
    Image.fromarray((twelve >> 4).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    made = dataset((twelve >> 4).astype(np.uint8), WindowCenter=128, WindowWidth=256)
    encapsulated(made, (tmp_path / "a.jpg").read_bytes(), JPEGBaseline8Bit)
    found = decode_gray(saved(tmp_path / "a.dcm", made)).astype(int)
    assert np.abs(found - decode_gray(tmp_path / "a.jpg")).max() <= 1


@real_data
@pytest.mark.parametrize(
    "path", sorted((REAL / "dicom").glob("*.dcm")), ids=lambda path: path.name[-12:]
)
def test_a_real_radiograph_is_shown_as_pydicoms_pipeline_shows_it(path: Path) -> None:
    found = decode_gray(path)
    assert found.shape == (1024, 1024)
    assert np.abs(found - by_pydicom(path)).max() <= 0.5 + 1e-6


@real_data
def test_the_real_monochrome1_file_is_its_twin_turned() -> None:
    """It is the other file with another label."""
    label, image = sorted(
        map(str, (REAL / "dicom").glob("*.dcm")), key=lambda path: "MONOHR1" not in path
    )
    both = decode_gray(label).astype(int) + decode_gray(image)
    assert set(np.unique(both)) <= {255, 256}  # a half is rounded up in both


# -- what is refused -----------------------------------------------------------------------------


def without(name: str) -> Dataset:
    made = dataset(np.ones((8, 8), dtype=np.uint8))
    delattr(made, name)
    return made


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (without("PixelData"), "without pixels"),
        (without("Rows"), "it lacks Rows"),
        (without("PhotometricInterpretation"), "it lacks PhotometricInterpretation"),
        (dataset(np.ones((8, 8), np.uint8), Rows=60000, Columns=60000), "60000 x 60000 pixels"),
        (dataset(np.ones((8, 8), np.uint8), Rows=0), "8 x 0 pixels"),
        (dataset(np.ones((8, 8), np.uint8), Rows=5000, Columns=5000), "damaged DICOM file"),
        (dataset(np.ones((8, 8), np.uint8), PhotometricInterpretation="PALETTE COLOR"), "PALETTE"),
        (dataset(np.ones((8, 8), np.uint8), PhotometricInterpretation="XYZ"), "unknown DICOM col"),
        (dataset(np.ones((8, 8), np.uint32)), "32 bits of gray"),
        (dataset(np.ones((8, 8, 3), np.uint16)), "16 bits of colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fault_58_what_is_no_radiograph_is_refused_with_the_reason(
    made: Dataset, told: str, tmp_path: Path
) -> None:
    assert told in refused(saved(tmp_path / "a.dcm", made))


def test_fault_58_a_transfer_syntax_without_a_decoder_is_refused(
    twelve: Array, tmp_path: Path
) -> None:
    made = encapsulated(dataset(twelve, bits=12), b"film", MPEG2MPML)
    assert "no decoder" in refused(saved(tmp_path / "a.dcm", made))


def test_fault_34_a_deflated_file_is_refused_unpacked(twelve: Array, tmp_path: Path) -> None:
    made = dataset(twelve, bits=12)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "deflated" in refused(saved(tmp_path / "a.dcm", made))


@pytest.mark.parametrize("rows", [0, 47, 65535])
def test_fault_34_a_jpeg_within_that_states_another_size_is_refused_undecoded(
    rows: int, twelve: Array, tmp_path: Path
) -> None:
    """With 0 rows one decoder fills the memory."""
    plain = saved(tmp_path / "a.dcm", dataset((twelve >> 4).astype(np.uint8)))
    made = dcmread(recoded(plain, tmp_path / "b.dcm", "JPEGLosslessProcess14_1"))
    content = made.PixelData
    place = content.index(b"\xff\xc3") + 5
    made.PixelData = content[:place] + rows.to_bytes(2, "big") + content[place + 2 :]
    assert "not of the size that it says" in refused(saved(tmp_path / "c.dcm", made))


def test_fault_34_a_few_bytes_that_claim_to_be_a_large_film_are_refused_at_once(
    tmp_path: Path,
) -> None:
    plain = saved(tmp_path / "a.dcm", dataset(np.ones((8, 8), dtype=np.uint8)))
    made = dcmread(recoded(plain, tmp_path / "b.dcm", "JPEGLSLossless"))
    made.Rows = made.Columns = 7900
    assert "too few bytes for 7900 x 7900" in refused(saved(tmp_path / "c.dcm", made))


def test_fault_34_a_jpeg_2000_bomb_within_is_refused(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "a.jp2", irreversible=False, no_jp2=True)
    stream = bytearray((tmp_path / "a.jp2").read_bytes())
    sizes = stream.index(b"\xff\x51") + 6  # Xsiz, Ysiz
    stream[sizes : sizes + 8] = (60000).to_bytes(4, "big") * 2
    made = encapsulated(dataset(np.ones((8, 8), dtype=np.uint8)), bytes(stream), JPEG2000Lossless)
    assert "damaged DICOM file" in refused(saved(tmp_path / "a.dcm", made))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("packed", [False, True])
def test_fault_58_a_cut_file_is_refused(
    share: float, packed: bool, twelve: Array, tmp_path: Path
) -> None:
    made = dataset(twelve, bits=12)
    path = saved(tmp_path / "a.dcm", run_length_encoded(made) if packed else made)
    content = path.read_bytes()
    path.write_bytes(content[: max(140, int(share * len(content)))])
    refused(path)


@pytest.mark.parametrize("depth", [3, 300, 20_000])
@pytest.mark.parametrize("told_length", [True, False])
def test_fault_58_nested_sequences_are_read_or_refused(
    depth: int, told_length: bool, twelve: Array, tmp_path: Path
) -> None:
    content = saved(tmp_path / "a.dcm", dataset(twelve, bits=12)).read_bytes()
    expected = decode_gray(tmp_path / "a.dcm")
    start, item = b"\x40\x00\x75\x02SQ\0\0", b"\xfe\xff\x00\xe0"
    nested = b""
    if told_length:
        for _ in range(depth):
            nested = item + struct.pack("<I", len(nested)) + nested
            nested = start + struct.pack("<I", len(nested)) + nested
    else:
        endless = b"\xff" * 4
        ends = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
        nested = (start + endless + item + endless) * depth + ends * depth
    place = content.index(b"\xe0\x7f\x10\x00")
    (tmp_path / "b.dcm").write_bytes(content[:place] + nested + content[place:])
    if told_length or depth < 100:
        np.testing.assert_array_equal(decode_gray(tmp_path / "b.dcm"), expected)
    else:
        assert "damaged DICOM file" in refused(tmp_path / "b.dcm")


def test_fault_58_without_pydicom_the_line_says_how_to_get_it(
    twelve: Array, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.dcm", dataset(twelve, bits=12))
    script = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from xray_lightning.data.decode_resize import decode_gray, UnreadableImageError\n"
        f"try: decode_gray({str(path)!r})\n"
        "except UnreadableImageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "takes pydicom: uv sync --extra dicom" in done.stdout, done.stderr


def test_fault_60_no_word_of_a_damaged_file_is_repeated(
    twelve: Array, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    path = saved(tmp_path / "a.dcm", dataset(twelve, bits=12))
    content, random = path.read_bytes(), np.random.default_rng(0)
    told = []
    for _ in range(300):
        spoiled = bytearray(content)
        for place in random.integers(132, 900, 3):
            spoiled[place] = int(random.integers(256))
        path.write_bytes(spoiled)
        try:
            decode_gray(path)
        except UnreadableImageError as error:
            told.append(str(error))
    assert len(told) > 10
    printed = capfd.readouterr()
    everything = "".join(told) + printed.out + printed.err + caplog.text
    for mark in ("ecretname", "SECRETID", "19010203", "Hospital", "secretmarker"):
        assert mark not in everything


@pytest.mark.parametrize(
    "element",
    [
        {"NumberOfFrames": "000000000001"},  # int() says what it was given
        {"WindowCenter": "000000002048", "WindowWidth": "4096"},
        {"SpecificCharacterSet": "ISO_IR 192"},  # a warning of pydicom's
        {"RescaleSlope": "000000000001", "RescaleIntercept": "0"},
    ],
    ids=lambda element: next(iter(element)),
)
def test_fault_60_an_element_that_holds_a_name_instead_is_not_quoted(
    element: dict[str, str], twelve: Array, tmp_path: Path
) -> None:
    whole = saved(tmp_path / "a.dcm", dataset(twelve, bits=12, **element)).read_bytes()
    value = next(iter(element.values())).encode()
    assert whole.count(value) == 1
    path = tmp_path / "b.dcm"
    path.write_bytes(whole.replace(value, b"SECRET^MARK "[: len(value)]))
    script = (
        "import logging, sys; logging.basicConfig(level=0)\n"
        "from xray_lightning.data.decode_resize import decode_gray, UnreadableImageError\n"
        f"try: decode_gray({str(path)!r})\n"
        "except UnreadableImageError as error: print(error)\n"
        "assert 'pydicom' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "SECRET" not in done.stdout + done.stderr


def test_a_size_may_be_asked_for(twelve: Array, tmp_path: Path) -> None:
    path = saved(tmp_path / "without_suffix", dataset(twelve, bits=12))
    assert read_gray(path, 32).shape == (32, 32)


def test_a_folder_of_dicom_files_is_found_by_name(twelve: Array, tmp_path: Path) -> None:
    saved(tmp_path / "a.dcm", dataset(twelve, bits=12))
    paths, others = find_files(tmp_path, frozenset(["a.dcm"]))
    assert paths == {"a.dcm": str(tmp_path / "a.dcm")}
    assert others == 0
