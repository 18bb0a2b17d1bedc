"""The curves of many images at once: equal to those of one image at a time, and no frame answered in vain."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from literal_curves import literal_area, literal_blur, literal_curve, lively
from torch import nn

from hkmap.engine import processor
from hkmap.errors import ChoiceError, RunError
from hkmap.evaluation.curves import BLURS, Frames, auc
from hkmap.evaluation.evaluate import EvaluationOptions
from hkmap.evaluation.fast import DTYPES, Numbers, frames_that_fit
from hkmap.networks.architectures import build
from hkmap.networks.backbone import Architecture
from hkmap.networks.classifier import Output

FLOAT64 = Numbers("Numbers of 64 bits.", torch.float64)
CLASSES = torch.tensor([2, 0, 3])


def a_network(dtype=torch.float64):
    torch.manual_seed(1)
    network = build(Architecture("resnet8+abn", 4, stem="small", width=4)).eval().to(dtype)
    return lively(network).requires_grad_(False)


def three_images(dtype=torch.float64):
    """Three images of 15 x 16, and maps with many ties."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(3, 3, 15, 16, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(0, 9, (3, 1, 15, 16), generator=generator).to(dtype) / 8


class Asked(nn.Module):
    """A network of one's own, which keeps how many frames it was asked of, and of what type."""

    def __init__(self, logits=lambda frames: torch.stack([frames.sum((1, 2, 3)), frames[:, 0, 0, 0]], 1)):
        super().__init__()
        self.logits, self.sizes, self.dtypes = logits, [], set()
        self.weight = nn.Parameter(torch.ones(1))

    def __deepcopy__(self, memo):
        return self      # there is nothing to fold, and the sizes are to be seen

    def forward(self, images, *held):
        self.sizes.append(len(images))
        self.dtypes.add(images.dtype)
        return Output(self.logits(images), None, None)


def drawn(frames, kind, images, saliency, classes, held=None):
    given = () if held is None else (held,)
    with torch.inference_mode():
        clean = frames.network(images, *given).logits
        return frames.curves(kind, images, saliency, classes, clean=clean, held=held)


# exact


@pytest.mark.parametrize("numbers", [FLOAT64, DTYPES["float32"]], ids=["float64", "float32"])
@pytest.mark.parametrize("held", [False, True], ids=["new maps", "held maps"])
@pytest.mark.parametrize(("batch_size", "step"), [(1, 30), (5, 8), (64, 30)])    # 30 leaves some
def test_curves_equal_the_literal_protocol(numbers, held, batch_size, step):
    network, (images, saliency) = a_network(numbers.dtype), three_images(numbers.dtype)
    maps = network(images).attention if held else None
    frames = Frames(network, step, batch_size, dtype=numbers)
    curve_tolerance, area_tolerance = (1e-10, 1e-10) if numbers is FLOAT64 else (1e-4, 1e-5)
    for kind in ("insertion", "deletion"):
        found = drawn(frames, kind, images, saliency, CLASSES, maps)
        assert found.probability.shape == found.accuracy.shape == (3, -(-240 // step) + 1)
        assert 0 < found.accuracy.mean() < 1
        for row, image in enumerate(images):
            ends = (literal_blur(image), image) if kind == "insertion" else (image, torch.zeros_like(image))
            given = () if maps is None else (maps[row][None],)
            scores, hits = literal_curve(network, *ends, saliency[row, 0], step, CLASSES[row].item(), *given)
            assert np.abs(found.probability[row].numpy() - scores).max() < curve_tolerance
            assert abs(auc(found.probability[row]).item() - literal_area(scores)) < area_tolerance
            assert found.accuracy[row].tolist() == hits.tolist()


def test_held_maps_make_other_curves():
    network, (images, saliency) = a_network(), three_images()
    held = torch.zeros_like(network(images).attention)
    one, other = (
        drawn(Frames(network, 30, dtype=FLOAT64), "deletion", images, saliency, CLASSES, maps).probability
        for maps in (None, held)
    )
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
def test_one_step_changes_all(kind):
    network, (images, saliency) = a_network(), three_images()
    found = drawn(Frames(network, 240, dtype=FLOAT64), kind, images, saliency, CLASSES).probability
    ends = (images, torch.zeros_like(images)) if kind == "deletion" else (BLURS["rise"](images), images)
    expected = [network(end).logits.softmax(1)[range(3), CLASSES] for end in ends]
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=0, atol=1e-10)


def test_the_insertion_of_a_map_is_the_deletion_of_its_opposite_reversed():
    """On one substrate, without ties."""
    network, (images, _) = a_network(), three_images()
    saliency = torch.stack([torch.randperm(240, generator=torch.Generator().manual_seed(row)) for row in range(3)])
    saliency = saliency.view(3, 1, 15, 16).double()
    frames = Frames(network, 8, blur="zeros", dtype=FLOAT64)
    inserted = drawn(frames, "insertion", images, -saliency, CLASSES)
    deleted = drawn(frames, "deletion", images, saliency, CLASSES)
    torch.testing.assert_close(inserted.probability, deleted.probability.flip(1), rtol=0, atol=1e-10)
    assert torch.equal(inserted.accuracy, deleted.accuracy.flip(1))


# by hand


def test_a_network_that_sums_one_region():
    """Its logit is the number of ones among four pixels, against 1.5: which the map has first, and then last."""
    network = Asked(lambda frames: torch.stack([frames[:, 0, 2, 2:6].sum(1), torch.full((len(frames),), 1.5)], 1))
    image, saliency = torch.ones(1, 3, 6, 8), torch.zeros(1, 1, 6, 8)
    saliency[0, 0, 2, 2:6] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    frames, chosen = Frames(network, 1, blur="zeros"), torch.tensor([0])
    seen = [torch.tensor(count - 1.5).sigmoid().item() for count in range(5)]
    right = [0.0, 0.0, 1.0, 1.0, 1.0]
    for kind, sign, scores, hits in (
        ("deletion", 1, seen[::-1] + 44 * seen[:1], right[::-1] + 44 * [0]),
        ("insertion", 1, seen + 44 * seen[-1:], right + 44 * [1]),
        ("deletion", -1, 44 * seen[-1:] + seen[::-1], 44 * [1] + right[::-1]),
        ("insertion", -1, 44 * seen[:1] + seen, 44 * [0] + right),
    ):
        found = drawn(frames, kind, image, sign * saliency, chosen)
        assert found.probability[0].tolist() == pytest.approx(scores, abs=1e-6)
        assert found.accuracy[0].tolist() == hits
    area = auc(drawn(frames, "deletion", image, saliency, chosen).accuracy).item()
    assert area == pytest.approx(2.5 / 48)


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
@pytest.mark.parametrize("blur", BLURS)
def test_the_curves_of_an_image_of_the_mean_colour_are_flat(kind, blur):
    network, (_, saliency) = a_network(), three_images()
    images = torch.zeros(3, 3, 15, 16, dtype=torch.float64)
    found = drawn(Frames(network, 8, blur=blur, dtype=FLOAT64), kind, images, saliency, CLASSES)
    clean = network(images).logits.softmax(1)[range(3), CLASSES]
    torch.testing.assert_close(found.probability, clean[:, None].expand(-1, 31), rtol=0, atol=1e-12)


# no frame in vain


def test_frames_of_several_images_share_a_pass_and_the_ends_are_answered_once():
    network, (images, saliency) = Asked(), three_images(torch.float32)
    frames = Frames(network, 24, 7)         # 10 steps, 11 frames
    classes, held = torch.tensor([0, 1, 1]), torch.zeros(3, 1, 4, 4)

    def sizes(frames, kind, held=None):
        network.sizes.clear()
        clean = network.logits(images)
        frames.curves(kind, images, saliency, classes, clean=clean, held=held)
        return network.sizes

    preparation, nothing = [2, 2], [1]
    assert sizes(frames, "deletion") == [*preparation, *nothing, 7, 7, 7, 6]      # 9 of each image
    assert sizes(frames, "insertion") == [7, 7, 7, 7, 2]                          # 10 of each
    assert sizes(Frames(network, 24, 7, blur="zeros"), "insertion")[3:] == [7, 7, 7, 6]
    assert sizes(Frames(network, 24, 7), "deletion", held)[3:] == [7, 7, 7, 7, 2]
    assert sizes(Frames(network, 24), "deletion") == [*preparation, *nothing, 16, 11]       # found by itself


def test_a_compiled_network_gets_batches_of_one_size(monkeypatch):
    sizes, given = [], []

    def compiled(network, **options):
        given.append(options)

        def answer(images):
            sizes.append(len(images))
            return network(images)

        return answer

    monkeypatch.setattr(torch, "compile", compiled)
    network, (images, saliency) = a_network(), three_images()
    found = drawn(Frames(network, 30, 7, dtype=FLOAT64, compiled=True), "insertion", images, saliency, CLASSES)
    expected = drawn(Frames(network, 30, 7, dtype=FLOAT64), "insertion", images, saliency, CLASSES)
    assert given == [{"dynamic": False}]
    assert sizes == [7, 7, 7, 7]        # of 24
    torch.testing.assert_close(found.probability, expected.probability, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("most", "fits"), [(10, 16), (63, 16), (64, 32), (200, 64), (2047, 512), (5000, 1024)])
def test_half_as_many_frames_as_fit_are_found_by_doubling(most, fits):
    tried = []

    def forward(count):
        tried.append(count)
        if count > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert frames_that_fit(forward) == fits
    assert tried == sorted(set(tried))
    assert max(tried) <= min(4 * fits, 2048)


# types of number


def test_frames_in_bfloat16_change_the_curves_a_little():
    network, (images, saliency) = a_network(torch.float32), three_images(torch.float32)
    exact, found = (
        drawn(Frames(network, 8, dtype=dtype), "deletion", images, saliency, CLASSES).probability for dtype in DTYPES
    )
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.02
    assert torch.equal(found[:, 0], exact[:, 0])        # the whole image's answer is not the copy's
    asked = Asked()
    drawn(Frames(asked, 8, dtype="bfloat16"), "deletion", images, saliency, torch.zeros(3, dtype=torch.int64))
    assert Counter(asked.dtypes) == {torch.float32: 1, torch.bfloat16: 1}


def test_an_answer_that_is_no_number_has_no_accuracy_either():
    network = Asked(lambda frames: torch.full((len(frames), 2), torch.nan))
    images, saliency = three_images(torch.float32)
    found = Frames(network, 30).curves(
        "deletion", images, saliency, torch.tensor([0, 1, 0]), clean=torch.zeros(3, 2), held=None
    )
    assert found.accuracy[:, 0].tolist() == [1, 0, 1]
    assert found.accuracy[:, 1:].isnan().all()


# errors, and the command


@pytest.mark.parametrize("step", [241, -1, 0])
def test_a_step_of_more_pixels_than_there_are_is_refused(step):
    with pytest.raises(RunError, match=rf"^--step {step}: an image of 16x15 has 240 pixels; expected 1 to 240$"):
        EvaluationOptions(("insertion",), step=step).pixel_step((15, 16))
    assert EvaluationOptions(("insertion",), step=240).pixel_step((15, 16)) == 240


def test_unknown_blurs_and_types_are_refused():
    with pytest.raises(ChoiceError, match="blur 'gauss' is unknown; did you mean 'gaussian'"):
        EvaluationOptions(("insertion",), blur="gauss")
    with pytest.raises(ChoiceError, match="dtype 'bfloat' is unknown; did you mean 'bfloat16'"):
        EvaluationOptions(("insertion",), dtype="bfloat")


def test_eval_says_how_the_frames_were_made(hk, make_shard, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "processor_features", lambda: frozenset({"avx2"}))
    shard = make_shard("a.h5", 6)
    small = ["--arch", "resnet8+abn", "--stem", "small", "--width", 4, "--image-size", 16, "--epochs", 1]
    assert hk("train", shard, *small, "--out", tmp_path / "run").exit_code == 0
    evaluate = ["eval", shard, "--from", tmp_path / "run", "--metric", "insertion", "--metric", "deletion"]
    plain = hk(*evaluate)
    assert plain.exit_code == 0, plain.stderr
    assert "--dtype" not in plain.stderr
    given = hk(*evaluate, "--blur", "gaussian", "--dtype", "bfloat16", "--batch-size", 5)
    assert given.exit_code == 0, given.stderr
    assert "--dtype bfloat16 is many times slower than float32 on this processor" in given.stderr
    stated = [run.records[0]["settings"] for run in (plain, given)]
    assert [(one["blur"], one["dtype"]) for one in stated] == [("rise", "float32"), ("gaussian", "bfloat16")]
    areas = [run.records[0]["metrics"] for run in (plain, given)]
    assert areas[0]["deletion"] == pytest.approx(areas[1]["deletion"], abs=0.02)
    assert areas[0]["insertion"] != areas[1]["insertion"]
    refused = hk(*evaluate, "--step", 257)
    assert refused.exit_code == 1
    assert "--step 257: an image of 16x16 has 256 pixels; expected 1 to 256" in refused.stderr
