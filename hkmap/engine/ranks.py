"""Several processes that train or measure together, one per device: the ranks that torchrun starts.

Each rank has the whole network and a part of each batch. All ranks do the same steps; rank 0 alone writes files and
talks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from hkmap.engine.runs import pick_device
from hkmap.errors import RunError
from hkmap.networks.classifier import Module

Item = TypeVar("Item")

logger = logging.getLogger("hkmap")

#: How long a rank waits for another that hangs. On the CPU one that ends is noticed at once; on CUDA by torchrun.
TIMEOUT = timedelta(minutes=5)


class Ranks(NamedTuple):
    """This process's number, from 0, and how many there are."""

    rank: int
    ranks: int

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0


def current() -> Ranks:
    """Return this process's rank as torchrun gives it in the environment; without torchrun, 0 of 1."""
    return _of_environment("RANK", "WORLD_SIZE")


def local() -> Ranks:
    """Return this process's rank among those of its machine."""
    return _of_environment("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _of_environment(*names: str) -> Ranks:
    rank, ranks = (os.environ.get(name, default) for name, default in zip(names, ("0", "1"), strict=True))
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise RunError(
            f'the environment has {names[0]} "{rank}" and {names[1]} "{ranks}"; expected a number from 0 and a larger '
            "one, as torchrun sets them; start hkmap by torchrun, or unset both"
        )
    return Ranks(int(rank), int(ranks))


@contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Join the other ranks, and yield this one's device; without torchrun, the device that ``device`` names.

    With "cuda", and with "auto" where there is CUDA, each rank of a machine has a device of its own (NCCL); with "cpu"
    they share the cores (gloo). Raises RunError where there are too few devices, and where another rank ends or does
    not answer within TIMEOUT; where NCCL waits for that rank, torchrun or PyTorch ends this process instead.
    """
    ranks = current()
    if ranks.ranks == 1:
        yield pick_device(device)
        return
    on, level = _own_device(device), logger.level
    try:
        if on.type == "cuda":
            torch.cuda.set_device(on)
            distributed.init_process_group("nccl", timeout=TIMEOUT, device_id=on)
        else:
            distributed.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"process {ranks.rank} of {ranks.ranks} cannot join the others ({reason}); start all by one torchrun"
        ) from error
    try:
        logger.setLevel(level if ranks.first else logging.ERROR)
        with _rank_errors(ranks):
            yield on
    finally:
        logger.setLevel(level)
        distributed.destroy_process_group()


def _own_device(name: str) -> torch.device:
    """Return the device of this rank on its machine, of the kind that ``name`` says."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        pick_device(name)       # unknown names have their own sentence
        raise RunError(f"--device {name}: each process needs a device of its own; use --device cuda, or cpu")
    own, here = local()
    if there and own >= there:
        raise RunError(
            f"torchrun started {here} processes on a machine with {there} CUDA devices; start one per device "
            f"(--nproc-per-node {there}), or use --device cpu"
        )
    return pick_device(f"cuda:{own}" if there else "cuda")


@contextmanager
def _rank_errors(ranks: Ranks) -> Iterator[None]:
    """Raise RunError in place of what torch raises where another rank has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise RunError(
            f"process {ranks.rank} of {ranks.ranks} lost another one, which has ended or not answered for "
            f"{TIMEOUT.total_seconds():.0f} s; see what that one says, then go on with --resume"
        ) from error


def gathered(items: Sequence[Item]) -> list[Item]:
    """Return the items of all ranks, in the order of the ranks, on each of them; items must be picklable."""
    parts: list[Sequence[Item]] = [items]
    if (ranks := current().ranks) > 1:
        parts *= ranks
        distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def in_turn(items: Sequence[Item]) -> list[Item]:
    """Return the items of all ranks, on each of them: the first of each rank, then the second of each, and so on."""
    return [item for _, item in sorted(gathered(list(enumerate(items))), key=lambda numbered: numbered[0])]


def of_first(make: Callable[[], Item]) -> Item:
    """Return what the first rank makes, on each of them; it must be picklable."""
    return gathered([make()] if current().first else [])[0]


def shared(network: Module) -> Module:
    """Return a network on its device, ready for all ranks: rank 0's weights, and on CUDA batch norm over all ranks.

    Call it before the optimizer is made. On the CPU, for which torch has no such norm, each rank normalises by its own
    part of a batch, and `reduced` keeps the running statistics alike.
    """
    if current().ranks == 1:
        return network
    state = network.state_dict()
    for tensor in state.values():
        distributed.broadcast(tensor, 0)
    if not next(iter(state.values())).is_cuda:
        return network
    try:
        from timm.layers.norm_act import convert_sync_batchnorm as convert  # knows timm's norms with an activation
    except ImportError:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(network)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, in one exchange; the result has the same bits on each of them."""
    if current().ranks == 1 or not tensors:
        return
    with torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def reduced(network: nn.Module) -> None:
    """Sum the gradients over all ranks, after backward; where each loss is divided by the count of all, that is exact.

    Running statistics that each rank has of its own part become their mean.
    """
    if (ranks := current().ranks) == 1:
        return
    statistics = [
        values for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        if module.training
        for values in (module.running_mean, module.running_var) if values is not None
    ]
    for values in statistics:
        values /= ranks
    add_up([*(parameter.grad for parameter in network.parameters() if parameter.grad is not None), *statistics])
