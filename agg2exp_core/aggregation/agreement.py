"""Agreement of prediction and label: Dice and intersection over union (Jaccard)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dice_iou(
    prediction: np.ndarray, label: np.ndarray, count: int, members: Sequence[Sequence[int]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of classes 0 … count−1, each (count,); NaN for a class that neither map has.

    prediction, label: (I, J, K) integers on one grid. Label values from count on are no class of the model. members: of
    each class those that count as it, where classes lie in each other.
    """
    if members:
        return _of_nested(prediction, label, members)
    predicted, labelled = prediction.reshape(-1), label.reshape(-1)
    both = np.bincount(predicted[predicted == labelled], minlength=count)[:count]
    sizes = np.bincount(predicted, minlength=count)[:count] + np.bincount(labelled, minlength=count)[:count]
    return _scores(both, sizes)


def _of_nested(
    prediction: np.ndarray, label: np.ndarray, members: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    found = [[np.isin(one, inside) for one in (prediction, label)] for inside in members]
    both = np.array([(predicted & labelled).sum() for predicted, labelled in found])
    return _scores(both, np.array([predicted.sum() + labelled.sum() for predicted, labelled in found]))


def _scores(both: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of the voxels that both maps have, and of the sum of what each has."""
    found = sizes > 0
    dice = np.divide(2 * both, sizes, out=np.full(len(both), np.nan), where=found)
    iou = np.divide(both, sizes - both, out=np.full(len(both), np.nan), where=found)
    return dice, iou
