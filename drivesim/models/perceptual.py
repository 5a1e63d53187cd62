"""How alike two pictures look, by the features of a frozen image network: a loss to train with, a distance to judge by.

stlpips   the shift-tolerant AlexNet of ST-LPIPS (Ghildyal & Liu 2022), which comes with the package stlpips-pytorch
FILE      LPIPS (Zhang et al. 2018) on VGG-16, the perceptual loss of latent diffusion, from a safetensors file that the
          user has: the convolutions of VGG-16 under torchvision's names (features.0.weight, as the file of
          timm/vgg16.tv_in1k has them) or torchmetrics' (net.slice1.0.weight). Its heads come from the file too where it
          has them (lin0.model.1.weight), else with torchmetrics. A pickle is not read: safetensors holds all of it.

Both answer 0 for the same picture. Neither is on the other's scale.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from drivesim.errors import UserError

ALEX = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
# VGG-16's convolutions by their index in torchvision's `features`, in the blocks whose last output is compared.
VGG = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS: ImageNet's mean and spread for [-1, 1]


class Conv(nn.Module):
    """A frozen convolution whose weights move with the network that holds it, but stay out of its checkpoints."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self.padding)


class FeatureDistance(nn.Module):
    """Squared differences of unit features, weighed by a head a layer, averaged over the picture.

    shift, scale  [3] what takes pixels in [-1, 1] to the inputs that the network was trained on
    heads         [1, C, 1, 1] a layer
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, heads: list[Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.layers = len(heads)
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head, persistent=False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalised pictures [N, 3, H, W] -> a map [N, C, h, w] a layer."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] in [-1, 1] -> maps of unit length along their channels: keep them to compare one with many."""
        maps = self.features((x - self.shift) / self.scale)
        return [m.float() / (m.float().norm(dim=1, keepdim=True) + 1e-10) for m in maps]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance [N] between the maps of two pictures each."""
        heads = [getattr(self, f"head{i}") for i in range(self.layers)]
        parts = [functional.conv2d((p - q) ** 2, head) for p, q, head in zip(a, b, heads, strict=True)]
        return torch.stack([part.mean((1, 2, 3)) for part in parts]).sum(0)

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [N] between pictures [N, 3, H, W] in [-1, 1]."""
        return self.distance(self(a), self(b))


class ShiftTolerantAlexNet(FeatureDistance):
    """The AlexNet trunk of ST-LPIPS: strides replaced by blurred subsampling (Zhang 2019). Weights: BSD-2."""

    def __init__(self) -> None:
        weights = _stlpips_weights()
        heads = [weights[f"lin{i}.model.1.weight"] for i in range(len(ALEX))]
        super().__init__(weights["scaling_layer.shift"], weights["scaling_layer.scale"], heads)
        self.convs = nn.ModuleList(
            Conv(weights[f"{place}.weight"], weights[f"{place}.bias"], 2 if i < 2 else 1)
            for i, place in enumerate(ALEX)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        maps = [functional.relu(_halve(self.convs[0](x)))]
        for i, conv in enumerate(list(self.convs)[1:], start=1):
            before = _halve(functional.max_pool2d(maps[-1], 3, 1)) if i < 3 else maps[-1]
            maps.append(functional.relu(conv(before)))
        return maps


class VGGDistance(FeatureDistance):
    """LPIPS on VGG-16, from the weights of `vgg_weights`."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        heads = [weights[f"lin{i}.model.1.weight"] for i in range(len(VGG))]
        super().__init__(torch.tensor(SHIFT), torch.tensor(SCALE), heads)
        self.blocks = nn.ModuleList(
            nn.ModuleList(Conv(weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], 1) for i in block)
            for block in VGG
        )

    def features(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, block in enumerate(self.blocks):
            x = functional.max_pool2d(x, 2) if i else x
            for conv in block:
                x = functional.relu(conv(x))
            maps.append(x)
        return maps


def perceptual_distance(name: str) -> FeatureDistance:
    """The network of an option: "stlpips", or the path of a file with VGG-16's weights; see the top of this module.

    raises  UserError for a name that is neither, or a file that holds something else
    """
    return ShiftTolerantAlexNet() if name == "stlpips" else VGGDistance(vgg_weights(Path(name)))


def vgg_weights(path: Path) -> dict[str, Tensor]:
    """What LPIPS on VGG-16 needs, from a safetensors file, under the names features.I.* and linI.model.1.weight.

    raises  UserError for a missing file, a pickle, or weights of another network
    """
    if not path.is_file():
        raise UserError(f"perceptual={path} is no file; expected stlpips, or a safetensors file of VGG-16's weights")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is no safetensors file, and a pickle is not read, since it may run anything; "
            "save its tensors with safetensors.torch.save_file"
        ) from error
    names = {f"net.slice{s}.{i}.{part}": f"features.{i}.{part}"
             for s, block in enumerate(VGG, start=1) for i in block for part in ("weight", "bias")}  # fmt: skip
    weights = {names.get(name, name): tensor.float() for name, tensor in found.items()}
    heads = [f"lin{i}.model.1.weight" for i in range(len(VGG))]
    if not any(head in weights for head in heads):
        weights |= _lpips_heads()
    needed = [*names.values(), *heads]
    if missing := [name for name in needed if name not in weights]:
        raise UserError(f"{path} does not hold VGG-16 with LPIPS heads: {missing[0]} is missing")
    firsts = {f"features.{block[0]}.weight": width for block, width in zip(VGG, VGG_WIDTHS, strict=True)}
    if wrong := [name for name, width in firsts.items() if weights[name].shape[0] != width]:
        raise UserError(f"{path}: {wrong[0]} is {list(weights[wrong[0]].shape)}; expected VGG-16 without batch norm")
    return {name: weights[name] for name in needed}


def _lpips_heads() -> dict[str, Tensor]:
    """The five heads that LPIPS' authors fitted to people's judgements; torchmetrics brings them as a plain state
    dict."""
    return _packaged("torchmetrics", "functional", "image", "lpips_models", "vgg.pth")


def _stlpips_weights() -> dict[str, Tensor]:
    return _packaged("stlpips_pytorch", "weights", "vST0.0", "alex_shift_tolerant.pth")


def _packaged(package: str, *place: str) -> dict[str, Tensor]:
    """A state dict that an installed package brings. Located, not imported: stlpips_pytorch's modules need torchvision
    and IPython, its weights need neither."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package.replace('_', '-')} is not installed; run `make setup`")
    path = Path(spec.submodule_search_locations[0], *place)
    return torch.load(path, map_location="cpu", weights_only=True)  # tensors alone: nothing else is unpickled


def _halve(x: Tensor) -> Tensor:
    """Blur with [1 2 1] x [1 2 1] and take every second pixel, mirrored by 2 at the edges."""
    taps = torch.tensor([1.0, 2, 1], device=x.device, dtype=x.dtype)
    kernel = (taps[:, None] * taps / 16).expand(x.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])
