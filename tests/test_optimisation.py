"""How to optimise: rates and gammas by hand, optimizers, precisions, class weights, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hkmap.engine import processor
from hkmap.engine.processor import processor_features, warn_of_slow
from hkmap.errors import RunError
from hkmap.training.averaging import Average
from hkmap.training.optimisation import (
    OPTIMIZERS,
    PRECISIONS,
    TrainingOptions,
    balanced,
    gamma,
    learning_rate,
)

CPU = torch.device("cpu")


def rates(dones: tuple[float, ...], **options: object) -> list[float]:
    return [learning_rate(TrainingOptions(**options), Fraction(str(done))) for done in dones]     # type: ignore[arg-type]


# learning rates and gammas


@pytest.mark.parametrize(("epochs", "expected"), [
    (1, [1]), (2, [1, 0.1]), (3, [1, 1, 0.1]), (4, [1, 1, 0.1, 0.01]), (5, [1, 1, 1, 0.1, 0.01]),
    (8, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
])
def test_the_rate_drops_after_half_and_three_quarters_are_done(epochs: int, expected: list[float]) -> None:
    options = TrainingOptions(epochs=epochs, learning_rate=1)
    for epoch, rate in enumerate(expected):
        for fraction in (Fraction(0), Fraction(1, 3), Fraction(98, 99)):
            assert learning_rate(options, epoch + fraction) == rate


def test_the_rate_drops_as_in_the_paper_at_150_and_225_of_300_epochs() -> None:
    found = rates((0, 149.9, 150, 224.9, 225, 299.9), epochs=300, learning_rate=0.05)
    assert found == [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005]


def test_the_rate_of_thirds_drops_at_30_and_60_of_90_epochs() -> None:
    assert rates((0, 29.9, 30, 59.9, 60, 89.9), epochs=90, schedule="thirds", learning_rate=0.1) == [
        0.1, 0.1, 0.01, 0.01, 0.001, 0.001
    ]
    assert rates((0, 0.9), epochs=1, schedule="thirds", learning_rate=0.1) == [0.1, 0.1]


def test_the_cosine_falls_with_every_step() -> None:
    found = rates((0, 1, 2, 2.5, 4), epochs=4, learning_rate=2, schedule="cosine")
    assert found == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sin(math.pi / 8), 0])


@pytest.mark.parametrize(("schedule", "factors"), [
    ("constant", [0.01, 0.01 + 0.99 / 4, 0.505, 1, 1]),
    ("cosine", [0.01, (0.01 + 0.99 / 4) * 0.990393, 0.505 * 0.961940, 0.853553, 0.146447]),
])
def test_a_warm_up_rises_to_the_schedule(schedule: str, factors: list[float]) -> None:
    found = rates((0, 0.5, 1, 2, 6), epochs=8, learning_rate=1, schedule=schedule, warmup=2)
    assert found == pytest.approx(factors, abs=1e-6)


@pytest.mark.parametrize("warmup", [3, 3.5, 4])
def test_a_warm_up_that_never_ends_is_refused(warmup: float) -> None:
    with pytest.raises(RunError, match=rf"--warmup {warmup}: a warm-up of {warmup} epochs never ends in 3; give fewer"):
        TrainingOptions(epochs=3, warmup=warmup)


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.5, 0.5, 0.5, 0.5, 0.5]), ("warmup", [0, 0.25, 0.5, 0.5, 0.5]),
    ("cosine", [0.5, 0.496922, 0.487764, 0.25, 0]),
])
def test_gamma_has_schedules_of_its_own(schedule: str, expected: list[float]) -> None:
    options = TrainingOptions(epochs=20, gamma=0.5, gamma_schedule=schedule)
    assert [gamma(options, Fraction(done)) for done in (0, 1, 2, 10, 20)] == pytest.approx(expected, abs=1e-6)
    halved = TrainingOptions(epochs=20, gamma=0.5, gamma_schedule=lambda done, epochs: Fraction(1, 2))
    assert gamma(halved, Fraction(3)) == 0.25


# optimizers


def stepped(optimizer: str, steps: int) -> list[float]:
    """A weight from 1 on, whose gradient is always 1, after each step."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    options = TrainingOptions(epochs=1, learning_rate=0.1, momentum=0.5, weight_decay=0.25, optimizer=optimizer)
    rule, path = OPTIMIZERS[optimizer]([weight], options), []
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        rule.step()
        path.append(weight.item())
    return path


def test_sgd_and_adamw_by_hand() -> None:
    first = 1 - 0.1 * (1 + 0.25)
    assert stepped("sgd", 2) == pytest.approx([first, first - 0.1 * (0.5 * 1.25 + 1 + 0.25 * first)])
    # with the same gradient in each step AdamW's ratio of the moments is 1, whatever the betas
    shrunk = 1 - 0.1 * 0.25
    assert stepped("adamw", 2) == pytest.approx([shrunk - 0.1, (shrunk - 0.1) * shrunk - 0.1])


def test_the_momentum_is_the_first_beta_of_adamw() -> None:
    options = TrainingOptions(epochs=1, momentum=0.3, optimizer="adamw")
    rule = OPTIMIZERS["adamw"]([nn.Parameter(torch.ones(1))], options)
    assert rule.param_groups[0]["betas"] == (0.3, 0.999)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_cuda_a_graph_takes_the_steps_that_the_cpu_takes(optimizer: str) -> None:
    options, found = TrainingOptions(epochs=1, learning_rate=0.1, optimizer=optimizer), {}
    for device in ("cpu", "cuda"):
        weight = nn.Parameter(torch.linspace(-1, 1, 7, device=device))
        rule, gradient = OPTIMIZERS[optimizer]([weight], options), torch.linspace(2, 1, 7, device=device)
        weight.grad = gradient
        rule.step()
        take = rule.step
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                rule.step()
            take = graph.replay
        for rate in (0.05, 0.01):       # a recorded step has not been taken yet
            group = rule.param_groups[0]
            if device == "cuda":
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            take()
        found[device] = weight.detach().cpu()
    assert torch.allclose(found["cpu"], found["cuda"], rtol=1e-5, atol=1e-6)


# precisions


@pytest.mark.parametrize(("name", "dtype"), [
    ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
])
def test_a_precision_computes_in_its_type_and_gives_gradients_in_float32(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    expected = torch.autograd.grad(layer(images).square().mean(), layer.weight)[0]
    precision, rule = PRECISIONS[name], torch.optim.SGD(layer.parameters(), lr=1)
    before, scaler = layer.weight.detach().clone(), precision.scaler(CPU)
    with precision(CPU):
        output = layer(images)
    assert output.dtype == dtype
    scaler.scale(output.float().square().mean()).backward()
    scaler.step(rule)
    scaler.update()
    assert layer.weight.dtype == torch.float32
    assert (before - layer.weight).detach() == pytest.approx(expected, abs=0.02)
    assert scaler.is_enabled() == (name == "float16")


INFO = {
    "old": "processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n\nprocessor : 1\nflags\t\t: fpu amx_bf16\n",
    "new": "flags\t\t: fpu avx512_bf16 avx512f\n", "arm": "Features\t: fp asimd asimdhp bf16\n", "mute": "cpu : x\n",
}


@pytest.mark.parametrize(("kind", "precision", "device", "slow"), [
    ("old", "float32", "cpu", False), ("old", "bfloat16", "cpu", True), ("old", "float16", "cpu", True),
    ("new", "bfloat16", "cpu", False), ("new", "float16", "cpu", True), ("arm", "bfloat16", "cpu", False),
    ("arm", "float16", "cpu", False), ("mute", "bfloat16", "cpu", False), ("old", "bfloat16", "cuda", False),
])
def test_a_type_that_a_processor_lacks_is_warned_of(
    kind: str, precision: str, device: str, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cpuinfo").write_text(INFO[kind])
    monkeypatch.setattr(processor, "processor_features", lambda: processor_features(tmp_path / "cpuinfo"))
    warn_of_slow("--precision", precision, PRECISIONS[precision].units, torch.device(device))
    sentence = (f"--precision {precision} is many times slower than float32 on this processor, which has no units for "
                "it; use --precision float32")
    assert caplog.messages == [sentence] * slow


def test_a_system_that_lists_no_features_is_not_warned(tmp_path: Path) -> None:
    assert processor_features(tmp_path / "nothing") == frozenset()


# class weights


def test_balanced_weights_make_classes_of_any_size_count_the_same() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3] * 1)
    weights = balanced(labels, 5)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3, 0])
    torch.manual_seed(0)
    each = functional.cross_entropy(torch.randn(10, 5), torch.from_numpy(labels), reduction="none")
    by_class = [each[labels == label].mean() for label in (0, 1, 3)]
    assert (each * weights[labels]).mean().item() == pytest.approx(sum(by_class).item() / 3)


# the average of the weights


def make_network() -> nn.Module:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1), nn.Linear(1, 1, bias=False))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1.0)
    network[2].requires_grad_(False)
    return network


def put(network: nn.Module, value: float) -> None:
    nn.init.constant_(network[0].weight, value)


def test_the_average_of_three_steps_by_hand() -> None:
    network = make_network()
    average = Average(network, 0.9)
    for value in (2.0, 3.0, 5.0):
        put(network, value)
        average.update(network)
    # 1 → .9 + .2 = 1.1 → .99 + .3 = 1.29 → 1.161 + .5
    assert average.state()["0.weight"].item() == pytest.approx(1.661)


def test_the_average_stands_in_for_the_weights_and_goes_again_even_after_an_error() -> None:
    network = make_network()
    average = Average(network, 0.5)
    put(network, 3.0)
    average.update(network)
    network[1].running_mean.fill_(7.0)
    network[2].weight.fill_(9.0)
    with average.swapped(network):
        assert network[0].weight.item() == 2.0
        assert network[1].running_mean.item() == 7.0
        assert network[2].weight.item() == 9.0
    with pytest.raises(ZeroDivisionError), average.swapped(network):
        assert network[0].weight.item() == 2.0 / 0
    assert network[0].weight.item() == 3.0
    assert average.state()["0.weight"].item() == 2.0
    assert network[0].weight.requires_grad


def test_the_average_leaves_out_what_is_frozen_and_continues_from_its_state() -> None:
    network = make_network()
    average, again = Average(network, 0.9), Average(network, 0.9)
    assert average.state().keys() == {"0.weight", "1.weight", "1.bias"}
    put(network, 4.0)
    average.update(network)
    again.load_state({name: value.clone() for name, value in average.state().items()})
    for each in (average, again):
        each.update(network)
    assert torch.equal(average.state()["0.weight"], again.state()["0.weight"])
    assert average.state()["0.weight"].item() == pytest.approx(1.57)


OTHERS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "0.weight": lambda state: {**state, "0.weight": torch.ones(2, 1)},
    "1.bias": lambda state: {name: value for name, value in state.items() if name != "1.bias"},
    "3.bias": lambda state: {**state, "3.bias": torch.ones(1)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_average_refuses_the_state_of_another_network(name: str) -> None:
    average = Average(make_network(), 0.9)
    with pytest.raises(ValueError, match=f"the averaged weights are of another network: {name}$"):
        average.load_state(OTHERS[name](average.state()))
