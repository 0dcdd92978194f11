"""How a network is run: on the CPU with convolutions that take oneDNN's fast path, forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

FAST = torch.channels_last_3d
UNIT = (1, 1, 1)
CACHED = 4096
"""Voxels whose channels are put in order at a time: they lie in a core's cache."""


def run(network: torch.nn.Module, images: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Logits (windows, classes, window) of images (windows, channels, window); the gradient of the images can be taken.

    The numbers are those of `network(images)`, but for rounding: to bfloat16 where that is the precision.
    """
    if precision == "bfloat16":
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return network(images).float()
    with _Fast():
        return network(images)


class _Fast(TorchFunctionMode):
    """While it is entered, convolutions of frozen weights are `_Convolution`s, and no normalisation returns a view."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.conv3d and not kwargs and _serves(*args):
            image, weight, bias, _, padding, *_ = args
            return _Convolution.apply(image, weight, bias, padding)
        output = function(*args, **(kwargs or {}))
        # A view that an activation then changes in place would have its gradient copied in every backward pass.
        return output.clone() if function is F.instance_norm and output.requires_grad else output


def _serves(image: torch.Tensor, weight: torch.Tensor, *others: Any) -> bool:
    """Whether it is the plain kind, on the CPU, of weights whose own gradient nobody asks for."""
    frozen = not any(isinstance(one, torch.Tensor) and one.requires_grad for one in (weight, *others))
    single = image.device.type == "cpu" and image.dtype == weight.dtype == torch.float32
    if not (frozen and single and len(others) == 5 and image.ndim == 5 and torch.backends.mkldnn.is_available()):
        return False
    _, stride, padding, dilation, groups = others
    if (stride, dilation, groups) != (UNIT, UNIT, 1) or not isinstance(padding, tuple | list):
        return False
    return len(padding) == 3 and all(before < size for before, size in zip(padding, weight.shape[2:], strict=True))


class _Convolution(torch.autograd.Function):
    """A convolution by oneDNN, whose gradient is again one: of flipped weights, their channels exchanged.

    oneDNN's own backward pass for few channels takes three to six times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]
    ) -> torch.Tensor:
        if ctx.needs_input_grad[0]:
            ctx.flipped = weight.flip(2, 3, 4).transpose(0, 1)
            ctx.padding = [size - 1 - before for size, before in zip(weight.shape[2:], padding, strict=True)]
        return _convolve(image, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _convolve(gradients[0], ctx.flipped, None, ctx.padding), None, None, None


def _convolve(
    image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int]
) -> torch.Tensor:
    if tuple(weight.shape[2:]) == UNIT:
        # As the product of matrices that it is: for few channels oneDNN takes up to ten times as long.
        output = image.new_empty((len(image), len(weight), *image.shape[2:]))
        torch.matmul(weight.flatten(1), image.flatten(2), out=output.flatten(2))
        return output if bias is None else output.add_(bias.view(-1, 1, 1, 1))
    last = image.contiguous(memory_format=FAST), weight.contiguous(memory_format=FAST)
    added = None if bias is None else bias.contiguous()  # oneDNN takes it for that
    # Asked for by name: PyTorch gives a single image to another path, which is far slower.
    return _planes(torch.mkldnn_convolution(*last, added, padding, UNIT, UNIT, 1))


def _planes(image: torch.Tensor) -> torch.Tensor:
    """A copy with channels first, as all other layers expect them."""
    planes = image.new_empty(image.shape)
    for plane, of in zip(planes.flatten(2), image.flatten(2), strict=True):
        for part, piece in zip(plane.split(CACHED, 1), of.split(CACHED, 1), strict=True):
            part.copy_(piece)  # a transposition of a matrix, for which PyTorch has a path of twice the speed
    return planes
