"""The fast path of convolutions gives what PyTorch's own gives, and is taken where it should be."""

from functools import partial

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR

from agg2exp_core.model import forward
from agg2exp_core.model.forward import run

KINDS = {
    "usual": {"kernel_size": 3, "padding": 1},
    "without bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "of one voxel": {"kernel_size": 1},
    "uneven": {"kernel_size": (1, 3, 5), "padding": (0, 1, 2)},
    "unpadded": {"kernel_size": 3},
    "more than padded": {"kernel_size": 1, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}
FAST = ("usual", "without bias", "of one voxel", "uneven", "unpadded", "reflected")


def convolution(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(4, 6, **KINDS[kind]).requires_grad_(False)


def outcome(ask, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the image's gradient of a weighted sum of it."""
    image = image.clone().requires_grad_()
    output = ask(image)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output.detach(), torch.autograd.grad((weights * output).sum(), image)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_convolution_and_its_gradient_stay_what_they_are(kind):
    network, image = convolution(kind), torch.rand(2, 4, 7, 8, 9)
    for ours, usual in zip(outcome(lambda x: run(network, x), image), outcome(network, image), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-5)
        assert ours.is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_path_is_taken_by_convolutions_of_unit_steps(kind, monkeypatch):
    taken = []
    monkeypatch.setattr(forward, "_Convolution", Spy(forward._Convolution, taken))
    run(convolution(kind), torch.rand(1, 4, 7, 8, 9))
    assert bool(taken) == (kind in FAST)


class Spy:
    """Notes that a function was applied."""

    def __init__(self, function, taken: list):
        self.function, self.taken = function, taken

    def apply(self, *args):
        self.taken.append(args)
        return self.function.apply(*args)


def test_an_activation_in_place_copies_no_gradient():
    network = torch.nn.Sequential(torch.nn.InstanceNorm3d(2), torch.nn.LeakyReLU(inplace=True))
    image = torch.rand(1, 2, 5, 6, 7)
    for ours, usual in zip(outcome(lambda x: run(network, x), image), outcome(network, image), strict=True):
        assert torch.equal(ours, usual)
    image.requires_grad_()
    assert [run(network, image).grad_fn.name(), network(image).grad_fn.name()] == [
        "LeakyReluBackward1",
        "AsStridedBackward0",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_convolution_gives_may_be_changed_in_place(kind):
    network, image = torch.nn.Sequential(convolution(kind), torch.nn.ReLU(inplace=True)), torch.rand(1, 4, 7, 8, 9)
    for ours, usual in zip(outcome(lambda x: run(network, x), image), outcome(network, image), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", (1, 5, 50))
def test_no_channel_or_voxel_is_taken_for_another(channels):
    network = torch.nn.Conv3d(channels, channels, 3, padding=1).requires_grad_(False)
    image = torch.rand(2, channels, 17, 18, 19)  # more voxels than are put in order at a time
    for ours, usual in zip(outcome(lambda x: run(network, x), image), outcome(network, image), strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", (1, 3))
def test_what_is_infinite_in_one_channel_stays_there(kernel):
    network = torch.nn.Conv3d(1, 2, kernel, padding=kernel // 2).requires_grad_(False)
    network.bias[1] = -torch.inf
    found = run(network, torch.rand(1, 1, 4, 5, 6))[0]
    assert torch.isfinite(found[0]).all()
    assert (found[1] == -torch.inf).all()


@pytest.mark.parametrize("padding", (1, (1,), "same"))
def test_padding_may_be_said_in_every_way(padding):
    weight, image, one = torch.rand(3, 2, 3, 3, 3), torch.rand(1, 2, 4, 5, 6), (1, 1, 1)
    found = run(lambda x: torch.conv3d(x, weight, None, one, padding, one, 1), image)
    torch.testing.assert_close(found, torch.conv3d(image, weight, padding=1))


def test_a_bias_that_is_part_of_another_array_is_read_as_what_it_is():
    network = torch.nn.Conv3d(2, 3, 3).requires_grad_(False)
    network.bias = torch.nn.Parameter(torch.rand(6)[::2], requires_grad=False)
    image = torch.rand(1, 2, 4, 5, 6)
    torch.testing.assert_close(run(network, image), network(image))


def test_weights_that_learn_get_their_gradient():
    network = convolution("usual").requires_grad_()
    run(network, torch.rand(1, 4, 5, 5, 5)).sum().backward()
    assert network.weight.grad is not None


def test_float64_is_left_alone():
    network, image = convolution("usual").double(), torch.rand(1, 4, 5, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(run(network, image), network(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        partial(SegResNet, spatial_dims=3, out_channels=3, init_filters=8, norm=("GROUP", {"num_groups": 4})),
        partial(SwinUNETR, in_channels=1, out_channels=3, feature_size=12),
    ],
    ids=["SegResNet", "Swin UNETR"],
)
def test_no_layer_sees_another_layout(make):
    """Normalisation with channels last is off by ten times as much or altogether; so no other layer gets them."""
    torch.manual_seed(1)
    network, image = smooth(make()).eval().requires_grad_(False), torch.rand(1, 1, 64, 64, 32)
    output, ours = outcome(lambda x: run(network, x), image)
    exact = outcome(network.double(), image.double())[1]
    assert output.is_contiguous()
    assert (ours - exact).abs().sum() <= 1e-5 * exact.abs().sum()


def smooth(network: torch.nn.Module) -> torch.nn.Module:
    """Its kinks rounded: rounding alone flips a gradient at a kink, more or less on every processor."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU | torch.nn.LeakyReLU):
                setattr(module, name, torch.nn.Softplus())
    return network
