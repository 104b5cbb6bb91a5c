"""A net under a plan against the same net written with PyTorch's own layers, everything kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres import ResNet, apply_plan, build_resnet, make_plan, predict_chain
from deepres.recompute import Plan, keep_all_plan, sqrt_plan
from deepres.recompute.planner import smallest_budget

SHAPE = (8, 3, 16, 16)


class PlainUnit(nn.Module):
    """A full pre-activation bottleneck, as one writes it by hand; `shared` is the activation before the split."""

    def __init__(self, channels: int, width: int, out: int, stride: int, *, is_shared: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (channels, width, width)])
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, width, 1, stride, bias=False),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.Conv2d(width, out, 1, bias=False),
            ]
        )
        self.shortcut = nn.Module()
        if stride != 1 or channels != out:
            self.shortcut.conv = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.is_shared, self.relu = is_shared, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norms[0](x))
        h = y if self.is_shared else x
        h = self.shortcut.conv(h) if hasattr(self.shortcut, "conv") else h
        y = self.convs[0](y)
        y = self.convs[1](self.relu(self.norms[1](y)))
        return h + self.convs[2](self.relu(self.norms[2](y)))


def plain_net(units_per_stage: int) -> nn.Module:
    """Plain PyTorch, with the names of a deepres net, so that the state of one loads into the other."""
    units, channels = [], 16
    for width in (16, 32, 64):
        for k in range(units_per_stage):
            stride = 2 if width > 16 and k == 0 else 1
            units.append(PlainUnit(channels, width, 4 * width, stride, is_shared=k == 0))
            channels = 4 * width
    net = nn.Module()
    net.stem = nn.Sequential()
    net.stem.add_module("conv", nn.Conv2d(3, 16, 3, padding=1, bias=False))
    net.units = nn.Sequential(*units)
    net.head = nn.Sequential()
    for name, layer in (
        ("norm", nn.BatchNorm2d(256)),
        ("relu", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("linear", nn.Linear(256, 10)),
    ):
        net.head.add_module(name, layer)
    net.forward = lambda x: net.head(net.units(net.stem(x)))
    return net


def two_steps(net: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses, the gradients of the second step and the buffers after two steps of SGD."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for step in range(2):
        images = torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)
        net.zero_grad()
        loss = F.cross_entropy(net(images), torch.arange(SHAPE[0]) % 10)
        loss.backward()
        found[f"loss {step}"] = loss.detach()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad
    found |= {name: p.grad for name, p in net.named_parameters()}
    return found | {name: b.clone() for name, b in net.named_buffers()}


def plans(net: ResNet) -> list[Plan]:
    chain = predict_chain(net, SHAPE)
    num_units = len(net.units)
    return [
        sqrt_plan(num_units),
        keep_all_plan(num_units, "conv_outputs"),
        make_plan(chain, smallest_budget(chain)),
    ]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # Rounding of 1e-16 and 6e-8 a sum, amplified by 29 layers' batch norms over two steps.
        (torch.float64, 1e-10),
        (torch.float32, 2e-3),
    ],
)
def test_losses_gradients_and_buffers_are_those_of_plain_pytorch(dtype, tolerance):
    torch.manual_seed(0)
    net = build_resnet(29)
    plain = plain_net(3)
    plain.load_state_dict(net.state_dict())
    expected = two_steps(plain.to(dtype), dtype)
    initial = {name: value.clone() for name, value in net.state_dict().items()}
    for plan in plans(net):
        twin = build_resnet(29)
        twin.load_state_dict(initial)
        apply_plan(twin.to(dtype), plan)
        found = two_steps(twin, dtype)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = value.double().abs().max().clamp_min(1e-30)
            error = (found[name].double() - value.double()).abs().max() / scale
            assert error <= tolerance, (name, float(error))
