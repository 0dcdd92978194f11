"""How a network is run: on the CPU with convolutions that take oneDNN's fast path, forwards and backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FAST = torch.channels_last_3d
UNIT = (1, 1, 1)


def run(network: torch.nn.Module, images: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Logits (windows, classes, window) of images (windows, 1, window); the gradient of the images can be taken.

    The numbers are those of `network(images)`, but for rounding: to bfloat16 where that is the precision.
    """
    if precision == "bfloat16":
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return network(images).float()
    with _FastConvolutions():
        return network(images)


class _FastConvolutions(TorchFunctionMode):
    """While it is entered, convolutions of frozen weights are `_Convolution`s where that is faster."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.conv3d and not kwargs and _serves(*args):
            image, weight, bias, _, padding, *_ = args
            return _Convolution.apply(image, weight, bias, padding)
        return function(*args, **(kwargs or {}))


def _serves(image: torch.Tensor, weight: torch.Tensor, *others: Any) -> bool:
    """Whether it is the plain kind, on the CPU, of weights whose own gradient nobody asks for."""
    frozen = not any(isinstance(one, torch.Tensor) and one.requires_grad for one in (weight, *others))
    single = image.device.type == "cpu" and image.dtype == weight.dtype == torch.float32
    if not (frozen and single and len(others) == 5 and image.ndim == 5):
        return False
    _, stride, padding, dilation, groups = others
    if (stride, dilation, groups) != (UNIT, UNIT, 1) or isinstance(padding, str):
        return False
    return all(before < size for before, size in zip(padding, weight.shape[2:], strict=True))


class _Convolution(torch.autograd.Function):
    """A convolution with channels last, whose gradient is again one: of flipped weights, their channels exchanged.

    oneDNN's own backward pass for few channels takes three to six times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]
    ) -> torch.Tensor:
        if ctx.needs_input_grad[0]:
            ctx.flipped = weight.flip(2, 3, 4).transpose(0, 1).contiguous(memory_format=FAST)
            ctx.padding = [size - 1 - before for size, before in zip(weight.shape[2:], padding, strict=True)]
        last = image.contiguous(memory_format=FAST), weight.contiguous(memory_format=FAST)
        return torch.conv3d(*last, bias, UNIT, padding).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        last = gradients[0].contiguous(memory_format=FAST)
        return torch.conv3d(last, ctx.flipped, None, UNIT, ctx.padding).contiguous(), None, None, None
