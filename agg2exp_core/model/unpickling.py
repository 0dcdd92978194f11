"""What a file of `torch.save` holds, of which nothing is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agg2exp_core.records import InputError, reason

REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


def unpickled(path: Path) -> Any:
    """Tensors, numbers and texts in lists and dictionaries; trainers keep numpy's numbers beside the weights, too.

    InputError: a damaged file, or one that holds more, such as a whole network.
    """
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar")]
    numbers += [type(np.dtype(kind)) for kind in "fdilq?"]
    try:
        with torch.serialization.safe_globals(numbers):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch hands on whatever its readers raise
        if found := REFUSED.search(str(error)):
            allowed = "what torch.save(model.state_dict(), …) writes"
            got = f"{path.name}, which holds {found[1][:80]}"
            raise InputError("weights must be tensors alone, for other objects can run code", got, allowed) from None
        raise InputError("weights must be readable", f"{path.name}: {reason(error)}") from None
