"""Checkpoints are files that people share: each damaged or altered one is a sentence, before anything is built."""

from __future__ import annotations

import io
import json
import operator
import random
import re
import resource
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from mutate_runs import altered, content_of, meet, write_as, written

from hkmap.engine.checkpoints import MODEL, check_finite, read_model, read_state, save_state
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import (
    check_memory,
    load_model,
    memory_errors,
    new_model,
    save_model,
)
from hkmap.errors import HkmapError, RunError
from hkmap.networks.backbone import Architecture

GOLDEN = ROOT / "tests/golden/data/trained/tuned"
NAME = "good.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stored run, which can be resumed, and its model as it is written today."""
    run = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("run") / "run"))
    shutil.copy(run / "best.pt", run / "last.pt")
    save_model(run / NAME, load_model(run))
    return run


@pytest.fixture(scope="module")
def good(run: Path) -> Path:
    return run / NAME


@pytest.fixture(scope="module")
def content(run: Path) -> dict[str, Any]:
    return content_of(run)


def same(one: Path, other: Path) -> bool:
    first, second = load_model(one), load_model(other)
    weights = zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True)
    described = ((m.architecture, m.preprocessing, m.class_names, m.control, m.fold) for m in (first, second))
    return operator.eq(*described) and all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_holds_the_same(content, tmp_path, version):
    write_as(version, tmp_path / "x.pt", content["model"])
    assert same(GOLDEN / "best.pt", tmp_path / "x.pt")


def test_other_programs_read_the_weights_and_equal_weights_make_equal_files(good, tmp_path):
    model = load_model(good)
    save_model(tmp_path / "again.safetensors", model)
    assert good.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    read = safetensors.torch.load_file(good)
    assert all(torch.equal(read[name], value) for name, value in model.network.state_dict().items())
    with safetensors.safe_open(good, "pt") as file:
        described = json.loads(file.metadata()["hkmap"])
    assert (described["format"], described["version"], described["control"]) == (MODEL, 3, "none")
    assert described["architecture"] == {
        "name": "resnet8+abn", "classes": 3, "stem": "small", "width": 2, "gate": "residual"
    }


def test_a_compiled_network_and_one_in_another_layout_keep_the_names_and_the_numbers(good, tmp_path):
    model = load_model(good)
    model.network.to(memory_format=torch.channels_last)
    wrapped = torch.nn.Module()      # what torch.compile returns has the module so, and takes seconds to import
    wrapped._orig_mod, model.network.extractor = model.network.extractor, wrapped
    save_model(tmp_path / "x.safetensors", model)
    assert good.read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_every_flipped_bit_of_a_model_is_found(good, tmp_path, seed):
    dice, data = random.Random(seed), good.read_bytes()
    of_the_seal = [8 * number + seed for number in range(120)]
    for spot in [*(dice.randrange(8 * len(data)) for _ in range(100)), *of_the_seal]:
        damaged = bytearray(data)
        damaged[spot // 8] ^= 1 << spot % 8
        (tmp_path / "flipped.safetensors").write_bytes(damaged)
        with pytest.raises(RunError, match=r"flipped\.safetensors: (damaged|not a checkpoint of hkmap, or damaged)"):
            load_model(tmp_path / "flipped.safetensors")


@pytest.mark.parametrize("seed", range(2))
def test_every_flipped_bit_of_a_state_is_found(run, content, tmp_path, seed):
    network = load_model(run).network
    save_state(tmp_path, content["state"])
    dice, data = random.Random(seed), (tmp_path / "state.pt").read_bytes()
    of_the_seal = [8 * (len(data) - number) + seed for number in range(1, 75)]
    for spot in [*(dice.randrange(8 * len(data)) for _ in range(100)), *of_the_seal]:
        damaged = bytearray(data)
        damaged[spot // 8] ^= 1 << spot % 8
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(RunError, match=r"state\.pt: (damaged|lacks the sha256|not a readable)"):
            read_state(tmp_path, network)


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
@pytest.mark.parametrize("name", ["cut.safetensors", "cut"])
def test_a_cut_file_is_found(good, tmp_path, name, length):
    (tmp_path / name).write_bytes(good.read_bytes()[:length])
    with pytest.raises(RunError, match=f"{name}: "):
        load_model(tmp_path / name)


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
       ("architecture", "preprocessing", "class_names", "control")},
    **{f"no architecture.{key}": (without("architecture", key), f"lacks architecture.{key};")
       for key in ("name", "classes", "stem", "width", "gate")},
    **{f"no preprocessing.{key}": (without("preprocessing", key), f"lacks preprocessing.{key};")
       for key in ("height", "width", "fit", "mean", "std")},
    **{f"{key} is a number": (set_to(key, value=5), f"{key} is 5; expected")
       for key in ("architecture", "preprocessing", "class_names", "control", "fold")},
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
    "a std of 0": (set_to("preprocessing", "std", value=(0.1, 0.0, 0.1)), "; expected 3 numbers from 1e-06"),
    "more keys": (set_to("extra", value=1), "has an unknown extra; expected architecture, "),
    "a tensor less": (without("weights", CONV), f"lacks weights {CONV};"),
    "a tensor more": (set_to("weights", "x", value=torch.zeros(1)), "its network has no weights x;"),
    "a tensor of another shape": (set_to("weights", CONV, value=torch.zeros(2, 3, 7, 7)), "expected float32 of shape"),
    "half precision": (set_to("weights", CONV, value=torch.zeros(2, 3, 3, 3).half()), "is float16 of shape"),
    "no numbers": (set_to("weights", CONV, value=torch.full((2, 3, 3, 3), float("inf"))), "that are not finite"),
    **{f"fold {value!r}": (set_to("fold", value={**FOLD, "fold": value}), "fold.fold is ")
       for value in (3, "1", "a/b", None)},
    "a fold without its seed": (
        set_to("fold", value={"fold": "1/2", "group": None, "digest": ""}), "lacks fold.fold_seed",
    ),
}


#: What safetensors cannot hold.
ALTERED_ZIPS = {
    **ALTERED,
    "no weights": (without("weights"), "lacks weights;"),
    "no state": (set_to("state", value=5), "state is 5; expected names with values"),
    "weights of numbers": (set_to("weights", value=5), "weights is 5; expected tensors by name"),
    "a number": (set_to("weights", CONV, value=1.0), "weights is a dict; expected tensors by name"),
    "one number for all": (set_to("weights", CONV, value=torch.zeros(1).expand(2, 3, 3, 3)), "has fewer numbers than"),
    **{kind: (set_to("weights", CONV, value=value), "not a readable checkpoint (ValueError)") for kind, value in {
        "sparse": torch.zeros(2, 3).to_sparse(), "meta": torch.zeros(2, 3, 3, 3, device="meta"),
        "a parameter": torch.nn.Parameter(torch.zeros(2, 3, 3, 3)),
    }.items()},
    "bytes that grow": (set_to("more", value=bytearray(9)), "not a readable checkpoint (ValueError)"),
}


def copied(content: dict[str, Any]) -> dict[str, Any]:
    return {key: copied(value) if isinstance(value, dict) else value for key, value in content.items()}


@pytest.mark.parametrize(("version", "name"), [
    *((version, name) for version in (1, 2) for name in ALTERED_ZIPS), *((3, name) for name in ALTERED)
])
def test_an_altered_checkpoint_is_a_sentence(content, tmp_path, name, version):
    """As the first version, which has no seal, and sealed again by somebody who knows how."""
    change, sentence = ALTERED_ZIPS[name]
    path = tmp_path / "altered.pt"
    changed = copied(content["model"])
    change(changed)
    write_as(version, path, changed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HkmapError) as found:
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024      # KiB
    is_one_sentence(str(found.value), path, sentence)


def test_only_a_zip_may_lack_the_fold(content, tmp_path):
    model = {name: value for name, value in content["model"].items() if name != "fold"}
    for version in (1, 2):
        write_as(version, tmp_path / "old.pt", model)
        assert load_model(tmp_path / "old.pt").fold is None
    write_as(3, tmp_path / "new.safetensors", model)
    with pytest.raises(RunError, match=r"new\.safetensors: lacks fold;"):
        load_model(tmp_path / "new.safetensors")


def is_one_sentence(said: str, path: Path, sentence: str) -> None:
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < len(str(path)) + 500      # it may list all networks
    assert sentence in said or re.search(sentence, said), said


ALTERED_STATES = {
    **{f"no {key}": (without(key), f"lacks {key};") for key in (
        "weights", "average", "optimizer", "scaler", "epoch", "step_in_epoch", "step", "best", "log", "seconds",
    )},
    "epoch -1": (set_to("epoch", value=-1), "epoch is -1; expected a whole number from 0"),
    "seconds that are none": (set_to("seconds", value=float("nan")), "seconds is nan; expected a number from 0"),
    "a best that is none": (set_to("best", "loss", value="low"), "best.loss is 'low'; expected a number"),
    "odd figures": (set_to("best", "validation", value={"top1": "x"}), "best.validation is a dict"),
    "weights of another network": (set_to("weights", value={"a": torch.zeros(2)}), "lacks weights attention."),
    "weights without numbers": (
        set_to("weights", CONV, value=torch.full((2, 3, 3, 3), float("nan"))), "that are not finite"),
    "an average of another network": (set_to("average", value={"a": torch.zeros(2)}), "its network has no weights a;"),
    "an average of another shape": (set_to("average", value={CONV: torch.zeros(2)}), "is float32 of shape (2,)"),
    "more keys": (set_to("extra", value=1), "has an unknown extra; expected weights, "),
}


@pytest.mark.parametrize("name", ALTERED_STATES)
def test_an_altered_state_is_a_sentence(run, content, tmp_path, name):
    change, sentence = ALTERED_STATES[name]
    changed = copied(content["state"])
    change(changed)
    save_state(tmp_path, changed)
    with pytest.raises(RunError) as found:
        read_state(tmp_path, load_model(run).network)
    is_one_sentence(str(found.value), tmp_path / "state.pt", sentence)


def test_a_state_comes_back_whole_and_an_average_may_be_of_some_weights(run, content, tmp_path):
    network, average = load_model(run).network, {CONV: torch.ones(2, 3, 3, 3)}
    given = {**content["state"], "average": average, "scaler": {"scale": 2.0}, "best": None, "epoch": 0, "seconds": 1.5}
    save_state(tmp_path, given)
    found = read_state(tmp_path, network)
    assert torch.equal(found.pop("average")[CONV], given.pop("average")[CONV])
    weights = found.pop("weights")
    assert all(torch.equal(weights[name], value) for name, value in given.pop("weights").items())
    assert str(found) == str(given)


def test_the_state_of_an_older_run_is_read(run):
    """It is in its last.pt; it knew neither steps in an epoch nor seconds, nor what the mean of the attention was."""
    state, former = read_state(run, load_model(run).network), torch.load(run / "last.pt", weights_only=True)
    assert {name: state[name] for name in ("epoch", "step", "step_in_epoch", "seconds")} == {
        "epoch": 2, "step": 4, "step_in_epoch": 0, "seconds": 0.0
    }
    assert state["best"] == {**former["state"]["best"], "attention_mean": None}


@pytest.mark.parametrize(("change", "sentence"), [
    (without("state", "epoch"), "lacks state.epoch;"),
    (set_to("state", "epoch", value=0), "state.epoch is 0; expected a whole number from 1"),
    (set_to("state", "best", "loss", value="low"), "state.best.loss is 'low'; expected"),
    (set_to("state", "best", "validation", value={"top1": "x"}), "state.best.validation is a dict"),
    (set_to("state", value={}), "has no state to resume from"),
])
@pytest.mark.parametrize("version", [1, 2])
def test_an_altered_state_of_an_older_run_is_a_sentence(run, tmp_path, version, change, sentence):
    changed = torch.load(run / "last.pt", weights_only=True)
    change(changed)
    write_as(version, tmp_path / "last.pt", {**changed, "version": version})
    with pytest.raises(RunError) as found:
        read_state(tmp_path, load_model(run).network)
    is_one_sentence(str(found.value), tmp_path / "last.pt", sentence)


@pytest.mark.parametrize(("version", "sentence"), [
    (3, "version 3, this hkmap reads up to 2; update hkmap"), ("2", "version is '2'; expected a whole number"),
    (0, "version is 0"), (None, "version is None"), (2, "lacks the sha256 at its end"),
])
def test_versions_of_zips(content, tmp_path, version, sentence):
    torch.save({"format": MODEL, "version": version, "state": {}, **content["model"]}, tmp_path / "x.pt")
    with pytest.raises(RunError, match=sentence):
        load_model(tmp_path / "x.pt")


@pytest.mark.parametrize(("change", "sentence"), [
    ({"version": 4}, "version 4, this hkmap reads up to 3; update hkmap"), ({"version": "3"}, "version is '3'"),
    ({"format": "other"}, "not an hkmap checkpoint"),
])
def test_versions_of_safetensors(content, tmp_path, change, sentence):
    write_as(3, tmp_path / "x.safetensors", {**content["model"], **change})
    with pytest.raises(RunError, match=sentence):
        load_model(tmp_path / "x.safetensors")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    packed = zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(GOLDEN / "best.pt") as old, packed as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(10**6 * name.endswith("/0")))
    with pytest.raises(RunError, match=r"not a readable checkpoint \(ValueError\)"):
        load_model(tmp_path / "x.pt")


def test_random_changes_are_runs_or_sentences(run, content, tmp_path):
    """As in the soak test, which has thousands."""
    dice, refused = random.Random(5), 0
    for _ in range(40):
        changed, what = altered(content, dice)
        if written(tmp_path, changed, dice):
            shutil.copy(GOLDEN / "log.jsonl", tmp_path / "log.jsonl")
            sentence = meet(run, tmp_path)
            refused += sentence is not None
            assert sentence is None or str(tmp_path) in sentence, what
    assert refused > 20


def test_other_files_are_named(hk, make_shard, tmp_path):
    shard = make_shard("x.h5", 4)
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n')
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pt").write_bytes(buffer.getvalue())
    for name, sentence in {
        "x.h5": "x.h5: an HDF5 file, as shards are; expected a run folder of `hkmap train`, or its best.safetensors",
        "x.jsonl": "x.jsonl: not a readable checkpoint", "foreign.pt": "foreign.pt: not an hkmap checkpoint",
        "legacy.pt": "legacy.pt: not a readable checkpoint",
        "foreign.safetensors": "`hkmap import` makes a run of other programs' weights",
    }.items():
        result = hk("eval", shard, "--from", tmp_path / name, "--metric", "top1")
        assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr
    result = hk("resize", "--size", 3, "--out", tmp_path / "m", tmp_path / "foreign.safetensors")
    assert "foreign.safetensors: a checkpoint, expected a file of records; use `hkmap predict" in result.stderr


def test_what_takes_more_than_the_machine_is_refused_before_it_is_built(hk, make_shard, good, tmp_path):
    shard = make_shard("x.h5", 4)
    for options, remedy in {
        ("--width", 4096): "two do not fit either; give a lower --image-size or --width, or a smaller --arch\n",
        ("--image-size", 4096): "two do not fit either; ", ("--batch-size", 65536): " fit; give --batch-size ",
    }.items():
        result = hk("train", shard, *options, "--out", tmp_path / "no")
        assert result.exit_code == 1
        assert "GiB, and cpu has" in result.stderr
        assert remedy in result.stderr
    large = {"height": 8192, "width": 8192, "fit": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    write_as(3, tmp_path / "large.pt", {**read_model(good), "preprocessing": large})
    for command in (["eval", shard, "--metric", "top1", "--batch-size", 65536], ["predict", "--batch-size", 65536]):
        result = hk(*command, "--from", tmp_path / "large.pt", stdin=[{"id": "1", "image": f"{shard}#0"}])
        assert "of 8192x8192 takes at least" in result.stderr
        assert "use a lower --batch-size, or a machine with more memory\n" in result.stderr


# what ends while it runs


SMALL, IMAGES, CPU = Architecture("resnet8+abn", 2, "small", 4), Preprocessing(16, 16), torch.device("cpu")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
])
def test_the_end_of_the_memory_names_the_batch_that_fits(error):
    with pytest.raises(RunError) as found, memory_errors(SMALL, IMAGES, 64, device=CPU):
        raise error
    assert str(found.value) == (
        "cpu ran out of memory with 64 images of 16x16 a batch; about 32 fit; give --batch-size 32 or a lower "
        "--image-size"
    )


def test_the_batch_that_fits_is_of_the_memory_there(monkeypatch):
    """What is left of it beside three times the weights, at twice the 100 bytes of an image's outputs."""
    def most(memory: int) -> str:
        monkeypatch.setattr("hkmap.engine.runs.machine_memory", lambda: memory)
        with pytest.raises(RunError) as found, memory_errors(SMALL, IMAGES, 1000, device=CPU):
            raise MemoryError
        return str(found.value)

    monkeypatch.setattr("hkmap.engine.runs._bytes_of", lambda *_: (1000, [60, 40]))
    assert "about 5 fit; give --batch-size 5 or" in most(3000 + 2 * 100 * 5)
    assert "about 2 fit;" in most(3000 + 2 * 100 * 3 - 1)
    assert "two do not fit either; give a lower --image-size or --width" in most(3000 + 2 * 100 * 2 - 1)
    assert "two do not fit either" in most(10)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes do not match"), memory_errors(SMALL, IMAGES, 4, device=CPU):
        raise RuntimeError("shapes do not match")
    check_memory(SMALL, IMAGES, 4, device=CPU, training=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["perception.fc.bias", "attention.map_norm.running_var", CONV])
def test_weights_that_are_not_finite_are_named(value, name):
    network = new_model(SMALL, IMAGES, ("a", "b"), 0).network
    network.state_dict()[name].fill_(3e38)      # its square is not finite, and it is
    check_finite(network)
    network.state_dict()[name].view(-1)[0] = value
    with pytest.raises(RunError, match=f"the weights {name} became other than finite"):
        check_finite(network)
