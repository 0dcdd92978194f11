"""DICOM series that tests write out of volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from agg2exp_core.records import Volume


def dicom(folder: Path, volume: Volume, series: str = "1", patient: str = "Doe^Jane", tilt: float = 0.0) -> list[Path]:
    """A CT series of a volume that is stored LPS-wise along its own axes, a file a slice, in no order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    paths = []
    for k in range(volume.array.shape[2]):
        slice_ = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = f"1.2.3.{series}.{k + 1}"
        slice_.SeriesInstanceUID, slice_.PatientID, slice_.PatientName = f"1.2.3.{series}", patient, patient
        slice_.StudyInstanceUID, slice_.FrameOfReferenceUID, slice_.Modality = "1.2.3", "1.2.4", "CT"
        slice_.ImageOrientationPatient = [*(lps[:3, 0] / edges[0]), *(lps[:3, 1] / edges[1])]
        slice_.ImagePositionPatient = [*(lps @ [0, tilt * k, k, 1])[:3]]
        slice_.PixelSpacing = [edges[1], edges[0]]
        slice_.Columns, slice_.Rows = volume.array.shape[:2]
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = (volume.array[:, :, k].T + 1024).astype("<u2").tobytes()
        paths.append(folder / f"{(7 * k) % 101:03d}.dcm")
        slice_.save_as(paths[-1], enforce_file_format=True)
    return paths
