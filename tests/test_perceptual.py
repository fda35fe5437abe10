"""LPIPS with random weights, against the formula written out by hand; what it must not touch, and what it must."""

from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from flexvae_cli.api import Batch, Encoded, loss
from flexvae_cli.api.testing import check_loss
from flexvae_cli.builtin_losses import lpips
from flexvae_cli.codes import Bound
from flexvae_cli.engine.losses.perceptual import load_lpips
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.errors import ModelError
from flexvae_cli.objective import Term

CHANNELS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
NAMES = {"vgg": "vgg16", "alex": "alexnet"}


def random_weights(net: str) -> dict[str, torch.Tensor]:
    """A file's tensors as torchvision and LPIPS name them."""
    draw = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        features = torchvision.models.get_model(NAMES[net], weights=None).features
    tensors = {}
    for name, value in features.state_dict().items():
        spread = (2 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.1
        tensors[f"features.{name}"] = torch.randn(value.shape, generator=draw) * spread
    for depth, count in enumerate(CHANNELS[net]):
        tensors[f"lin{depth}.model.1.weight"] = torch.rand(1, count, 1, 1, generator=draw)
    return tensors


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The path of a file of random weights."""
    folder = tmp_path_factory.mktemp("lpips")

    def make(net):
        path = folder / f"{net}.safetensors"
        if not path.exists():
            save_file(random_weights(net), path)
        return str(path)

    return make


def batch(x: torch.Tensor, y: torch.Tensor) -> Batch:
    return Batch(x, y, y, Encoded(x))


def images(size, dtype=torch.float32):
    draw = torch.Generator().manual_seed(2)
    x, noise = (torch.rand(size, generator=draw, dtype=dtype) * 2 - 1 for _ in range(2))
    return x, x + 0.5 * noise


def vgg_features(x, w):
    """ReLU 1_2, 2_2, 3_3, 4_3, 5_3 of VGG16 (Simonyan and Zisserman, 2015)."""
    for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = x if stage[0] == 0 else F.max_pool2d(x, 2)
        for i in stage:
            x = F.conv2d(x, w[f"features.{i}.weight"], w[f"features.{i}.bias"], padding=1).relu()
        yield x


def alex_features(x, w):
    """The five ReLUs of AlexNet's convolutions (Krizhevsky, 2014)."""
    for i, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        x = F.max_pool2d(x, 3, 2) if i in (3, 6) else x
        x = F.conv2d(x, w[f"features.{i}.weight"], w[f"features.{i}.bias"], stride, padding).relu()
        yield x


def by_hand(net: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    w = random_weights(net)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features = {"vgg": vgg_features, "alex": alex_features}[net]
    one, two = (features((each - shift[:, None, None]) / scale[:, None, None], w) for each in (x, y))
    total = 0
    for depth, (a, b) in enumerate(zip(one, two, strict=True)):
        a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total = total + (w[f"lin{depth}.model.1.weight"] * (a - b) ** 2).sum(1).mean((1, 2))
    return total.mean()


@pytest.mark.parametrize(("net", "size"), [("vgg", (2, 3, 24, 32)), ("alex", (2, 3, 40, 48))])
def test_the_distance_by_hand(weights, net, size):
    x, y = images(size)
    ours, y_ours, y_hand = load_lpips(net, weights(net)), y.clone().requires_grad_(), y.clone().requires_grad_()
    value, expected = ours(batch(x, y_ours)), by_hand(net, x, y_hand)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    expected.backward()
    assert torch.allclose(y_ours.grad, y_hand.grad, rtol=1e-3, atol=1e-3 * y_hand.grad.abs().max().item())
    assert ours(batch(x, x)).item() == 0.0


def test_the_gradient_is_that_of_finite_differences(weights):
    x, y = images((1, 1, 31, 33), torch.float64)
    ours = load_lpips("alex", weights("alex"))
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(batch(x, y)), y)
    way = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        up, down = (ours(batch(x, y + h * way)).item() for h in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx((gradient * way).sum().item(), rel=1e-4)


def test_it_is_sound_and_without_gradients_it_would_not_be(weights):
    check_loss(lpips, net="alex", weights=weights("alex"))

    @loss("probe", reduction="sample")
    def probe():
        """LPIPS computed where nothing is recorded."""
        return torch.no_grad()(load_lpips("alex", weights("alex")))

    with pytest.raises(AssertionError, match="it has no gradient to the output or the latent"):
        check_loss(probe)


def test_the_net_is_frozen_and_no_part_of_the_model(weights):
    """A step of the optimizer leaves its weights as they are, and the model's state does not hold them."""
    bound = Bound(lpips, {"net": "alex", "weights": weights("alex")})
    total = TotalLoss([Term("reconstruction", bound, 1.0)])
    net = total.functions[0].net
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, _ = images((1, 3, 32, 32))
    total(batch(x, model(x)), 0)["loss"].backward()
    optimizer.step()
    assert model.weight.grad.any()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert total.tensors() == {}
    assert sorted(model.state_dict()) == ["bias", "weight"]


def test_grey_samples_are_repeated(weights):
    x, y = images((2, 1, 32, 32))
    ours = load_lpips("alex", weights("alex"))
    assert torch.equal(ours(batch(x, y)), ours(batch(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1))))


def test_training_goes_on_behind_a_validation(weights):
    """What validation made under inference mode, on its device and in its type, must not get into a gradient."""
    ours = load_lpips("alex", weights("alex"))
    x, y = images((1, 3, 32, 32), torch.float64)
    with torch.inference_mode():
        ours(batch(x, y))
    y.requires_grad_()
    ours(batch(x, y)).backward()
    assert y.grad.any()


def test_black_features_have_a_finite_gradient(weights):
    tensors = random_weights("alex")
    tensors["features.0.bias"] -= 1e3  # every ReLU of the first depth gives 0
    path = weights("alex").replace("alex", "black")
    save_file(tensors, path)
    x, y = images((1, 3, 32, 32))
    y.requires_grad_()
    load_lpips("alex", path)(batch(x, y)).backward()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("lin3.model.1.weight"), "lin3.model.1.weight should be 1x256x1x1, and the file has none"),
        (
            lambda t: t.update({"features.0.weight": torch.zeros(64, 3, 3, 3)}),
            "should be 64x3x11x11, and the file has 64x3x3x3",
        ),
        (lambda t: t.clear(), "features.0.weight should be 64x3x11x11, and the file has none"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, what):
    tensors = random_weights("alex")
    change(tensors)
    save_file({"other": torch.ones(1), **tensors}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        load_lpips("alex", str(tmp_path / "w.safetensors"))
    assert what in str(caught.value)
    assert "flexvae import-pt alexnet-owt-7be5be79.pth alex.pth w.safetensors --drop 'classifier.*'" in str(
        caught.value
    )
