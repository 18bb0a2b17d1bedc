"""Checkpoints are files that people share: each damaged or altered one is a sentence, before anything is built."""

from __future__ import annotations

import io
import random
import re
import resource
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from mutate_runs import altered, content_of, meet, written

from hkmap.engine.checkpoints import CHECKPOINT_VERSION, save_checkpoint
from hkmap.engine.runs import load_model, save_model
from hkmap.errors import HkmapError, RunError

GOLDEN = ROOT / "tests/golden/data/trained/tuned"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of today, of the first stored run, with all that training needs to go on."""
    path = tmp_path_factory.mktemp("run") / "good.pt"
    save_model(path, load_model(GOLDEN))
    return path


@pytest.fixture(scope="module")
def content(good: Path) -> dict[str, Any]:
    return content_of(good)


def same(one: Path, other: Path) -> bool:
    first, second = load_model(one), load_model(other)
    weights = zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
    return (first.architecture, first.class_names, first.control) == (
        second.architecture, second.class_names, second.control
    ) and all(torch.equal(a, b) for a, b in weights)


def test_the_first_version_and_that_of_today_hold_the_same(good):
    assert same(GOLDEN / "best.pt", good)
    assert torch.load(good, weights_only=True)["version"] == CHECKPOINT_VERSION == 2


@pytest.mark.parametrize("seed", range(2))
def test_every_flipped_bit_is_found(good, tmp_path, seed):
    dice, data = random.Random(seed), good.read_bytes()
    of_the_seal = [8 * (len(data) - number) + seed for number in range(1, 75)]
    for spot in [*(dice.randrange(8 * len(data)) for _ in range(150)), *of_the_seal]:
        damaged = bytearray(data)
        damaged[spot // 8] ^= 1 << spot % 8
        (tmp_path / "flipped.pt").write_bytes(damaged)
        with pytest.raises(RunError, match=r"flipped\.pt: (damaged|lacks the sha256|not a readable)"):
            load_model(tmp_path / "flipped.pt")


def test_a_flipped_bit_of_the_first_version_is_found_or_changes_nothing(tmp_path):
    """It has no seal; the zip's own CRCs are compared."""
    dice, data = random.Random(0), (GOLDEN / "best.pt").read_bytes()
    for _ in range(60):
        damaged = bytearray(data)
        spot = dice.randrange(8 * len(data))
        damaged[spot // 8] ^= 1 << spot % 8
        (tmp_path / "flipped.pt").write_bytes(damaged)
        with suppress(HkmapError):
            assert same(tmp_path / "flipped.pt", GOLDEN / "best.pt"), spot


@pytest.mark.parametrize("length", [0, 1, 9, 73, 1000, -1, -2, -73, -74])
def test_a_cut_file_is_found(good, tmp_path, length):
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:length])
    with pytest.raises(RunError, match=r"cut\.pt: "):
        load_model(tmp_path / "cut.pt")


def set_to(*path: str, value: Any):
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def without(*path: str):
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


CONV = "extractor.conv1.weight"
FOLD = {"fold": "1/2", "fold_seed": 0, "group": None, "digest": "ab"}
ALTERED = {
    **{f"no {key}": (without(key), f"lacks {key};") for key in
       ("architecture", "preprocessing", "class_names", "control", "weights", "state")},
    **{f"no architecture.{key}": (without("architecture", key), f"lacks architecture.{key};")
       for key in ("name", "classes", "stem", "width", "gate")},
    **{f"no preprocessing.{key}": (without("preprocessing", key), f"lacks preprocessing.{key};")
       for key in ("height", "width", "fit", "mean", "std")},
    **{f"{key} is a number": (set_to(key, value=5), f"{key} is 5; expected")
       for key in ("architecture", "preprocessing", "class_names", "control", "fold", "weights", "state")},
    **{f"classes {value!r}": (set_to("architecture", "classes", value=value), "architecture.classes is ")
       for value in (0, -3, 10**9, 2.0, True, "2", None, 10**60)},
    "another number of classes": (set_to("architecture", "classes", value=4), "has 3 class_names, but architecture"),
    "fewer names": (set_to("class_names", value=["a", "b"]), "has 2 class_names, but architecture.classes is 3"),
    "names of numbers": (set_to("class_names", value=[1, 2, 3]), "class_names is a list; expected a list of texts"),
    **{f"width {value!r}": (set_to("architecture", "width", value=value), "architecture.width is ")
       for value in (0, -1, 10**6, 2.5, "wide")},
    "a wider network": (set_to("architecture", "width", value=4096), r"weights\.\S+ is float32 of shape"),
    "a deeper network": (set_to("architecture", "name", value="resnet152+abn"), "lacks weights "),
    "a plain network": (set_to("architecture", "name", value="resnet8"), "its network has no weights attention."),
    "an unknown network": (set_to("architecture", "name", value="vgg"), "architecture 'vgg' is unknown"),
    "an unknown stem": (set_to("architecture", "stem", value="big"), "stem 'big' is unknown"),
    "an unknown gate": (set_to("architecture", "gate", value="x"), "gate 'x' is unknown"),
    "an unknown fit": (set_to("preprocessing", "fit", value="x"), "fit 'x' is unknown"),
    "an unknown control": (set_to("control", value="sham"), "control is 'sham'; expected one of none, shuffled"),
    "large images": (set_to("preprocessing", "height", value=10**5), "preprocessing.height is 100000; expected"),
    "a mean that is none": (set_to("preprocessing", "mean", value=(0.5, float("nan"), 0.5)), "preprocessing.mean is a"),
    "a std of 0": (set_to("preprocessing", "std", value=(0.1, 0.0, 0.1)), "preprocessing.std is a tuple; expected 3"),
    "more keys": (set_to("extra", value=1), "has an unknown extra; expected architecture, "),
    "a tensor less": (without("weights", CONV), f"lacks weights {CONV};"),
    "a tensor more": (set_to("weights", "x", value=torch.zeros(1)), "its network has no weights x;"),
    "a tensor of another shape": (set_to("weights", CONV, value=torch.zeros(2, 3, 7, 7)), "expected float32 of shape"),
    "half precision": (set_to("weights", CONV, value=torch.zeros(2, 3, 3, 3).half()), "is float16 of shape"),
    "a number": (set_to("weights", CONV, value=1.0), "weights is a dict; expected tensors by name"),
    "no numbers": (set_to("weights", CONV, value=torch.full((2, 3, 3, 3), float("inf"))), "that are not finite"),
    "one number for all": (set_to("weights", CONV, value=torch.zeros(1).expand(2, 3, 3, 3)), "has fewer numbers than"),
    **{kind: (set_to("weights", CONV, value=value), "not a readable checkpoint (ValueError)") for kind, value in {
        "sparse": torch.zeros(2, 3).to_sparse(), "meta": torch.zeros(2, 3, 3, 3, device="meta"),
        "a parameter": torch.nn.Parameter(torch.zeros(2, 3, 3, 3)),
    }.items()},
    "bytes that grow": (set_to("more", value=bytearray(9)), "not a readable checkpoint (ValueError)"),
    "a state without its epoch": (without("state", "epoch"), "lacks state.epoch;"),
    "epoch 0": (set_to("state", "epoch", value=0), "state.epoch is 0; expected a whole number from 1"),
    "a best that is none": (set_to("state", "best", "loss", value="low"), "state.best.loss is 'low'; expected"),
    "odd figures": (set_to("state", "best", "validation", value={"top1": "x"}), "state.best.validation is a dict"),
    **{f"fold {value!r}": (set_to("fold", value={**FOLD, "fold": value}), "fold.fold is ")
       for value in (3, "1", "a/b", None)},
    "a fold without its seed": (
        set_to("fold", value={"fold": "1/2", "group": None, "digest": ""}), "lacks fold.fold_seed",
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_checkpoint_is_a_sentence(content, tmp_path, name, version):
    """As the first version, which has no seal, and sealed again by somebody who knows how."""
    change, sentence = ALTERED[name]
    path = tmp_path / "altered.pt"
    altered_content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    altered_content["state"]["best"] = dict(altered_content["state"]["best"])
    change(altered_content)
    if version == 1:
        torch.save({"format": "hkmap-checkpoint", "version": 1, **altered_content}, path)
    else:
        save_checkpoint(path, altered_content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HkmapError) as found:
        load_model(path)
    said = str(found.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 300
    assert sentence in said or re.search(sentence, said), said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024      # KiB


@pytest.mark.parametrize(("version", "sentence"), [
    (3, "version 3, this hkmap reads up to 2; update hkmap"), ("2", "version is '2'; expected a whole number"),
    (0, "version is 0"), (None, "version is None"), (2, "lacks the sha256 at its end"),
])
def test_versions(content, tmp_path, version, sentence):
    torch.save({"format": "hkmap-checkpoint", "version": version, **content}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=sentence):
        load_model(tmp_path / "x.pt")


def test_a_compressed_checkpoint_is_not_unpacked(good, tmp_path):
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(10**6 * name.endswith("/0")))
    with pytest.raises(RunError, match=r"not a readable checkpoint \(ValueError\)"):
        load_model(tmp_path / "x.pt")


def test_random_changes_are_runs_or_sentences(good, content, tmp_path):
    """As in the soak test, which has thousands."""
    dice, refused = random.Random(5), 0
    for _ in range(60):
        changed, what = altered(content, dice)
        if written(tmp_path / "last.pt", changed, dice):
            shutil.copy(GOLDEN / "log.jsonl", tmp_path / "log.jsonl")
            sentence = meet(good, tmp_path)
            refused += sentence is not None
            assert sentence is None or str(tmp_path) in sentence, what
    assert refused > 30


def test_other_files_are_named(hk, make_shard, tmp_path):
    shard = make_shard("x.h5", 4)
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n')
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pt").write_bytes(buffer.getvalue())
    for name, sentence in {
        "x.h5": "x.h5: an HDF5 file, as shards are; expected a run folder of `hkmap train`, or its best.pt or last.pt",
        "x.jsonl": "x.jsonl: not a readable checkpoint", "foreign.pt": "foreign.pt: not an hkmap checkpoint",
        "legacy.pt": "legacy.pt: not a readable checkpoint",
    }.items():
        result = hk("eval", shard, "--from", tmp_path / name, "--metric", "top1")
        assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr


def test_what_takes_more_than_the_machine_is_refused_before_it_is_built(hk, make_shard, good, tmp_path):
    shard = make_shard("x.h5", 4)
    for options in (["--width", 4096], ["--image-size", 4096], ["--batch-size", 65536]):
        result = hk("train", shard, *options, "--out", tmp_path / "no")
        assert result.exit_code == 1
        assert "GiB, and cpu has" in result.stderr
        assert "lower --batch-size, --image-size or --width" in result.stderr
    large = {"height": 8192, "width": 8192, "fit": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_checkpoint(tmp_path / "large.pt", {**content_of(good), "preprocessing": large})
    for command in (["eval", shard, "--metric", "top1", "--batch-size", 65536], ["predict", "--batch-size", 65536]):
        result = hk(*command, "--from", tmp_path / "large.pt", stdin=[{"id": "1", "image": f"{shard}#0"}])
        assert "of 8192x8192 takes at least" in result.stderr
