"""A network that answers while a person paints: features once per image, the branch alone at each movement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hkmap.editor.packed import packed
from hkmap.engine.answers import check_answers, has_branch
from hkmap.engine.data import collate, normalise, seen_example
from hkmap.engine.inputs import plain_view
from hkmap.engine.runs import TrainedModel
from hkmap.errors import RunError
from hkmap.files.images import Pixels
from hkmap.maps.certainty import Weighted
from hkmap.maps.check import Map
from hkmap.maps.geometry import View, map_back, view_map
from hkmap.networks.classifier import place

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """An image as the network has seen it: its features, its own map, and its answer with that map (K,)."""

    features: Tensor
    own: Tensor                     # (1, 1, h, w)
    view: View
    before: Probabilities

    @property
    def attention(self) -> Map:
        """The network's map (h, w) of the whole image, as `hkmap predict` saves it."""
        values = self.own[0, 0].float().cpu().numpy()
        return map_back(values, self.view, values.shape)


class Guess(NamedTuple):
    """A class, its probability with the map as it is now, and with the network's own."""

    label: int
    name: str
    probability: float
    before: float


class LiveNetwork:
    """A network with attention branch, on its device, without gradients. One thread at a time may use it."""

    def __init__(self, model: TrainedModel, device: torch.device) -> None:
        if not has_branch(model.network):
            raise RunError(
                "the network has no attention branch, so no edited map can replace its own; train one with +abn, or "
                "omit --from to paint without a network"
            )
        self.model, self.device = model, device
        self._network = place(model.network, device).eval()
        if device.type == "cpu":
            self._network = packed(self._network, torch.zeros(1, 3, *model.preprocessing.size))

    @staticmethod
    def prepare_thread() -> None:
        """Let the thread that answers compute alone: two threads wait for each other while a browser has a core."""
        torch.set_num_threads(1)

    @torch.inference_mode()
    def see(self, image: Pixels, name: str) -> Seen:
        """Return what the network makes of an image (H, W, 3); ``name`` says in an error which one it is."""
        inputs, network = self.model.preprocessing, self._network
        view = plain_view(inputs, (image.shape[0], image.shape[1]))
        batch = collate([seen_example(image, None, view, inputs, map_size=self.model.map_size)]).to(self.device)
        images = normalise(batch.images, inputs)
        features = network.features(images)
        own = network.look(features).attention
        seen = Seen(features, own, view, _probabilities(network.answer(features, own)))
        check_answers([bool(np.isfinite(seen.before).all())], lambda row: name)
        return seen

    @torch.inference_mode()
    def answer(self, seen: Seen, edited: Weighted) -> Probabilities:
        """Return the probabilities (K,) with an edited map of the whole image; where nobody knows, the network's own.

        They are those of ``network(image, attention=map)`` with what the network's view shows of the map.
        """
        inputs = self.model.preprocessing
        shown = view_map(edited, seen.view, self.model.map_size, padded=inputs.padding is not None)
        values = torch.from_numpy(shown.map)[None, None].to(self.device, seen.own.dtype)
        if shown.certainty is not None:
            known = torch.from_numpy(shown.certainty > 0)[None, None].to(self.device)
            values = torch.where(known, values, seen.own)
        return _probabilities(self._network.answer(seen.features, values))

    def guesses(self, seen: Seen, now: Probabilities, label: int, count: int = 3) -> list[Guess]:
        """Return the ``count`` likeliest classes, and the true one ``label`` (-1: nobody knows) if it is none of them.
        """
        best = list(np.argsort(-now, kind="stable")[:count])
        if 0 <= label < len(now) and label not in best:
            best.append(label)
        names: Sequence[str] = self.model.class_names
        return [Guess(int(at), names[at], float(now[at]), float(seen.before[at])) for at in best]


def _probabilities(logits: Tensor) -> Probabilities:
    return np.asarray(logits[0].float().softmax(0).cpu().numpy())
