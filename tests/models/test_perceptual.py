"""Perceptual distances: LPIPS on VGG-16 against torchmetrics' own network, and files that are no weights of it."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchmetrics.functional.image import lpips

from drivesim.errors import UserError
from drivesim.models.perceptual import perceptual_distance

VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def vgg_features() -> nn.Sequential:
    """The convolutional part of VGG-16 (configuration D of Simonyan & Zisserman 2015), random."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    return vgg_features()


@pytest.fixture(scope="module")
def reference(features) -> nn.Module:
    """torchmetrics' LPIPS with its heads and our random trunk, which it would otherwise download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: features)
        return lpips._LPIPS(net="vgg")


@pytest.fixture(scope="module")
def file(features, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file({f"features.{name}": weight for name, weight in features.state_dict().items()}, path)
    return path


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_equals_torchmetrics(reference, file):
    a, b = pictures(0), pictures(1)
    with torch.no_grad():
        expected = reference(a, b).flatten()
        assert_close(perceptual_distance(str(file)).between(a, b), expected, rtol=1e-4, atol=1e-7)


def test_torchmetrics_own_file_is_read_too_heads_and_all(reference, tmp_path):
    weights = {name: w * 2 if name.startswith("lin") else w for name, w in reference.state_dict().items()}
    weights = {name: w for name, w in weights.items() if not name.startswith("lins.")}  # the same heads once more
    save_file(weights, tmp_path / "lpips.safetensors")
    a, b = pictures(0), pictures(1)
    with torch.no_grad():
        found = perceptual_distance(str(tmp_path / "lpips.safetensors")).between(a, b)
        assert_close(found, 2 * reference(a, b).flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["stlpips", "vgg"])
def test_a_picture_is_at_no_distance_from_itself_and_the_gradient_leads_towards_it(name, request):
    distance = perceptual_distance(name if name == "stlpips" else str(request.getfixturevalue("file")))
    target = pictures(0)
    assert (distance.between(target, target) == 0).all()
    other = (target + 0.3 * pictures(1)).requires_grad_()
    before = distance.between(other, target).sum()
    before.backward()
    assert torch.isfinite(other.grad).all()
    stepped = other.detach() - 0.1 * other.grad / other.grad.norm()
    assert distance.between(stepped, target).sum() < before


@pytest.mark.parametrize("name", ["stlpips", "vgg"])
def test_its_weights_are_neither_trained_nor_part_of_a_checkpoint(name, request):
    distance = perceptual_distance(name if name == "stlpips" else str(request.getfixturevalue("file")))
    assert not list(distance.parameters())
    assert not distance.state_dict()
    assert {buffer.dtype for buffer in distance.to(torch.float64).buffers()} == {torch.float64}  # it moves all the same


def test_flat_pictures_have_finite_gradients():
    flat = torch.zeros(1, 3, 32, 64, requires_grad=True)
    perceptual_distance("stlpips").between(flat, torch.ones(1, 3, 32, 64)).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_what_is_no_file_is_refused():
    with pytest.raises(UserError, match="perceptual=lpips is no file; expected stlpips, or a safetensors file"):
        perceptual_distance("lpips")


def test_a_pickle_is_refused_and_not_opened(features, tmp_path):
    torch.save(features.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"vgg.pth is no safetensors file, and a pickle is not read"):
        perceptual_distance(str(tmp_path / "vgg.pth"))


def test_weights_of_another_network_are_refused(features, tmp_path):
    weights = {f"features.{name}": weight for name, weight in features.state_dict().items()}
    save_file({name: w for name, w in weights.items() if name != "features.28.bias"}, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"does not hold VGG-16 with LPIPS heads: features.28.bias is missing"):
        perceptual_distance(str(tmp_path / "short.safetensors"))
    save_file({**weights, "features.5.weight": torch.zeros(64, 64, 3, 3)}, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"features.5.weight is \[64, 64, 3, 3\]; expected VGG-16"):
        perceptual_distance(str(tmp_path / "narrow.safetensors"))
