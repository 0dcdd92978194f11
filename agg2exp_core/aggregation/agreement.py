"""Agreement of prediction and label: Dice and intersection over union (Jaccard)."""

from __future__ import annotations

import numpy as np


def dice_iou(prediction: np.ndarray, label: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of classes 0 … count−1, each (count,); NaN for a class that neither map has.

    prediction, label: (I, J, K) integers on one grid. Label values from count on are no class of the model.
    """
    predicted, labelled = prediction.reshape(-1), label.reshape(-1)
    both = np.bincount(predicted[predicted == labelled], minlength=count)[:count]
    sizes = np.bincount(predicted, minlength=count)[:count] + np.bincount(labelled, minlength=count)[:count]
    found = sizes > 0
    dice = np.divide(2 * both, sizes, out=np.full(count, np.nan), where=found)
    iou = np.divide(both, sizes - both, out=np.full(count, np.nan), where=found)
    return dice, iou
