"""The controller of `kld_target`: it comes to its target, it waits for no device, and it resumes bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from flexvae_cli.api import Batch, Encoded, Gaussian
from flexvae_cli.builtin_losses import kld, mse
from flexvae_cli.codes import Bound
from flexvae_cli.engine.losses.controller import RateController
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.objective import Term


def total(target: float = 0.5, start: float = 1e-3, **more) -> TotalLoss:
    reconstruction = Term("reconstruction", Bound(mse, {}), 1.0)
    return TotalLoss([reconstruction, Term("kld", Bound(kld, {"free_bits": 0.0}), start, target=target)], **more)


class Toy(torch.nn.Module):
    """A linear variational autoencoder of vectors of 8 with 4 latent numbers, as (b, 8, 1)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Conv1d(8, 8, 1), torch.nn.Conv1d(4, 8, 1)

    def forward(self, x: torch.Tensor) -> Batch:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        output = self.decoder(z)
        return Batch(x, output, output, Encoded(z, Gaussian(mean, log_variance)))


def steps(toy: Toy, loss: TotalLoss, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Train; returns the rates."""
    rates = []
    for step in range(first, last):
        torch.manual_seed(step)
        values = loss(toy(torch.randn(32, 8, 1)), step)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        loss.update({name: value.detach() for name, value in values.items()})
        rates.append(values["rate"].item())
    return rates


def test_the_rate_of_a_net_comes_to_its_target_and_stays():
    """Begun with a third of the weight that holds 0.6 nats."""
    toy, loss = Toy(), total(target=0.6, start=0.04)
    rates = steps(toy, loss, torch.optim.Adam(toy.parameters(), lr=0.02), 0, 500)
    assert max(rates[:200]) > 0.8
    assert sum(rates[-100:]) / 100 == pytest.approx(0.6, rel=0.08)
    assert all(abs(rate - 0.6) < 0.15 for rate in rates[-100:])


@pytest.mark.parametrize("start", [1e-6, 10.0])
@pytest.mark.parametrize("lag", [0.01, 1.0])
def test_the_rate_comes_from_afar_whether_nets_answer_slowly_or_at_once(start, lag):
    """A channel of Gaussians: at weight w its rate settles at log(1 + 1 / w) / 2, with the lag of training."""
    controller, rate, seen = RateController(), 0.5 * math.log(1 + 1 / start), []
    for _ in range(3000):
        weight = controller.weight(start, torch.zeros(())).item()
        rate += lag * (0.5 * math.log(1 + 1 / weight) - rate)
        controller.update(torch.tensor(rate), 0.6)
        seen.append(rate)
    assert abs(seen[0] - 0.6) > 0.5
    assert all(rate == pytest.approx(0.6, rel=0.02) for rate in seen[-200:])


def test_a_run_that_is_resumed_goes_on_bit_for_bit():
    toy, loss = Toy(), total()
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.05)
    steps(toy, loss, optimizer, 0, 20)
    kept = {name: value.clone() for name, value in loss.tensors().items()}
    weights = {name: value.clone() for name, value in toy.state_dict().items()}
    whole = steps(toy, loss, optimizer, 20, 40)
    again, resumed = Toy(), total()
    again.load_state_dict(weights)
    resumed.restore(kept)
    assert steps(again, resumed, torch.optim.SGD(again.parameters(), lr=0.05), 20, 40) == whole
    assert torch.equal(resumed.tensors()["log_weight"], loss.tensors()["log_weight"])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in toy.state_dict().items())


def test_what_it_tells_and_what_counts():
    loss = total(target=0.5, start=0.01)
    mean = torch.full((2, 4, 3), 2.0, requires_grad=True)
    zero = torch.zeros(2, 4, 3)
    values = loss(Batch(zero, zero, zero, Encoded(mean, Gaussian(mean, zero))), 0)
    assert values["rate"].item() == 2.0  # nats: half of 2 squared
    assert values["kld"].item() == 24.0
    assert values["kld_weight"].item() == pytest.approx(0.01)
    assert values["loss"].item() == pytest.approx(0.24)
    assert not values["rate"].requires_grad
    assert not values["kld_weight"].requires_grad
    loss.update(values)
    raised = math.exp(0.01)  # the rate is more than an e-fold too high: the largest step
    assert loss(Batch(zero, zero, zero, Encoded(mean, Gaussian(mean, zero))), 1)["kld_weight"].item() == pytest.approx(
        0.01 * raised
    )


def test_free_bits_do_not_hide_the_rate():
    floor = Term("kld", Bound(kld, {"free_bits": 0.4}), 1e-3, target=0.5)
    zero = torch.zeros(1, 4, 3)
    values = TotalLoss([Term("reconstruction", Bound(mse, {}), 1.0), floor])(
        Batch(zero, zero, zero, Encoded(zero, Gaussian(zero, zero))), 0
    )
    assert values["rate"].item() == 0.0
    assert values["kld"].item() == pytest.approx(0.4 * 12)


def test_the_weight_is_clamped_and_no_broken_number_moves_it():
    controller, like = RateController(), torch.zeros(())
    assert controller.weight(1e-3, like).item() == pytest.approx(1e-3)
    for rate in (math.nan, math.inf):
        controller.update(torch.tensor(rate), 1.0)
    assert controller.weight(5.0, like).item() == pytest.approx(1e-3)
    for _ in range(3000):
        controller.update(torch.tensor(1e9), 1.0)
    assert controller.weight(5.0, like).item() == pytest.approx(1e3, rel=1e-4)
    for _ in range(6000):
        controller.update(torch.tensor(0.0), 1.0)
    assert controller.weight(5.0, like).item() == pytest.approx(1e-12, rel=1e-3)


def test_no_step_waits_for_the_device():
    """On the meta device a number that is read is an error."""
    with torch.device("meta"):
        mean = torch.zeros(2, 4, 3)
        loss = total()
        batch = Batch(mean, mean, mean, Encoded(mean, Gaussian(mean, mean)))
        for step in range(2):
            loss.update(loss(batch, step))
        assert loss.tensors()["log_weight"].device.type == "meta"


def test_training_goes_on_behind_a_validation():
    loss, toy = total(), Toy()
    with torch.inference_mode():
        loss(toy(torch.zeros(2, 8, 1)), 0)
    steps(toy, loss, torch.optim.SGD(toy.parameters(), lr=0.01), 0, 2)


def test_phases_share_one_controller():
    one = total(target=0.5, start=0.01)
    other = TotalLoss([Term("reconstruction", Bound(mse, {}), 1.0)], before=one)
    three = total(target=2.0, start=7.0, before=other)
    zero = torch.zeros(2, 4, 3)
    batch = Batch(zero, zero, zero, Encoded(zero, Gaussian(zero, zero)))
    one.update(one(batch, 0))
    assert "kld_weight" not in other(batch, 1)
    other.update(other(batch, 1))
    assert three(batch, 2)["kld_weight"].item() == pytest.approx(0.01 * math.exp(-0.01))
    assert three.tensors().keys() == one.tensors().keys() == {"log_weight"}


def test_a_state_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="not that of kld_target"):
        total().restore({"momentum": torch.zeros(())})
    with pytest.raises(ValueError, match="no finite number"):
        total().restore({"log_weight": torch.tensor(math.nan)})
    fresh = total()
    fresh.restore({})
    assert fresh.tensors() == {}
