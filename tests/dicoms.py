"""DICOM files made for tests, each full of marks that stand for a person's data."""

from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

Array = npt.NDArray[Any]

# What must never leave a file.
PERSON = {
    "PatientName": "Secretname^Marker",
    "PatientID": "SECRETID-MARKER",
    "PatientBirthDate": "19010203",
    "InstitutionName": "Secret Hospital Marker",
    "StudyDescription": "<script>secretmarker()</script>",
}


def dataset(pixels: Array, *, bits: int | None = None, **elements: Any) -> Dataset:
    """A radiograph of these stored values: whole numbers (H, W), or RGB (H, W, 3)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name, value in PERSON.items():
        setattr(made, name, value)
    made.Modality = "CR"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def lookup_table(entries: npt.NDArray[np.uint16]) -> Dataset:
    """A modality or VOI LUT of 16 bits, from stored value 0 on."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [len(entries), 0, 16], entries.tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    return table


def encapsulated(made: Dataset, stream: bytes, syntax: str) -> Dataset:
    """The file with a compressed stream in place of its pixels."""
    made.PixelData = encapsulate([stream])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = syntax
    return made


def saved(path: Path, made: Dataset) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


def run_length_encoded(made: Dataset) -> Dataset:
    made.compress(RLELossless)
    return made


def recoded(path: Path, out: Path, syntax: str) -> Path:
    """A file's image in another transfer syntax, by its name in GDCM."""
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(out))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return out
