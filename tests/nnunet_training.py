"""Trains a tiny model with nnU-Net itself, as its users do: `python nnunet_training.py FOLDER`, for `make oracle`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "aorta": 1, "heart": 2}, "numTraining": 5,
    "file_ending": ".nii.gz",
}  # fmt: skip
NAME, PLACES = "Dataset001_Tiny", ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def train(base: Path) -> None:
    """Two steps, which move every weight; the folder is the one that nnU-Net leaves of longer training."""
    for place in PLACES:
        (base / place).mkdir()
        os.environ[place] = str(base / place)
    os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    _write_scans(base / "nnUNet_raw" / NAME)
    # It reads its places as it is imported.
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    extract_fingerprints([1], num_processes=1, check_dataset_integrity=False, verbose=False)
    plan_experiments([1], gpu_memory_target_in_gb=1)
    preprocess([1], configurations=["3d_fullres"], num_processes=[1], verbose=False)
    prepared = base / "nnUNet_preprocessed" / NAME
    plans, about = (json.loads((prepared / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainer(plans | {"continue_training": False}, "3d_fullres", 0, about, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()


def _write_scans(folder: Path) -> None:
    """Boxes of two organs in noise."""
    for inner in ("imagesTr", "labelsTr"):
        (folder / inner).mkdir(parents=True)
    rng, affine = np.random.default_rng(0), np.diag([3.0, 3, 3, 1])
    for number in range(DATASET["numTraining"]):
        labels = np.zeros((40, 36, 32), np.uint8)
        labels[8:20, 8:20, 8:20], labels[22:34, 15:30, 10:25] = 1, 2
        image = (rng.normal(-500, 50, labels.shape) + 200 * labels).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"case{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"case{number}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(DATASET))


if __name__ == "__main__":
    train(Path(sys.argv[1]))
