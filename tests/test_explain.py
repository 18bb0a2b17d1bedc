"""Where maps come from: rows of the table, folders and files by id, keys of the records; and `predict` saves them."""

from __future__ import annotations

import json

import cv2
import h5py
import numpy as np
import pytest
import torch

from hkmap.engine.data import collate, normalise
from hkmap.engine.inputs import Preprocessing, plain_view
from hkmap.engine.runs import hold_out, load_model, new_model, save_model
from hkmap.errors import RunError
from hkmap.evaluation.evaluate import EvaluationOptions, evaluate
from hkmap.evaluation.explain import EXPLANATIONS, Asked, Explanation, maps_of_batch
from hkmap.files.maps import open_writer
from hkmap.files.references import file_name
from hkmap.maps.geometry import map_back, view_image
from hkmap.networks.backbone import Architecture
from hkmap.shards.folds import Folding, ids_of
from hkmap.shards.sequence import ShardSequence
from hkmap.shards.writer import ShardWriter
from hkmap.stream.references import load_map

CPU = torch.device("cpu")
CURVES = ["--metric", "insertion,deletion"]


def save_run(path, name="resnet8+abn", fit="squash", side=16):
    """A network with random weights, as a file that --from takes."""
    architecture = Architecture(name, 3, "small", 4)
    classes = [f"class {label}" for label in range(3)]
    save_model(path, new_model(architecture, Preprocessing(side, side, fit), classes, 0))
    return path


@pytest.fixture
def run(make_shard, tmp_path):
    return save_run(tmp_path / "abn.safetensors"), make_shard("test.h5", 10, classes=3, maps=7)


@pytest.fixture
def plain(make_shard, tmp_path):
    return save_run(tmp_path / "plain.safetensors", "resnet8"), make_shard("test.h5", 10, classes=3, maps=7)


def asked(count=3, size=(4, 6), ids=("a", "b", "c")):
    model = new_model(Architecture("resnet8", 3, "small", 4), Preprocessing(16, 16), ["a", "b", "c"], 0)
    model.network.eval()
    example = np.zeros((16, 16, 3), np.uint8), np.zeros(size, np.float32), np.zeros(size, np.float32)
    batch = collate([example] * count)
    classes = torch.zeros(count, dtype=torch.int64)
    images = normalise(batch.images, model.preprocessing)
    return Asked(model.network, images, classes, None, batch, ids, range(len(ids)))


# the baselines


def test_random_maps_are_even_and_depend_on_the_id_alone():
    ids = [f"record {number}" for number in range(500)]
    maps = EXPLANATIONS["random"].maps(asked(500, (4, 6), ids))
    assert maps.shape == (500, 1, 4, 6)
    assert 0 <= maps.min() < 0.001 < 0.999 < maps.max() <= 1
    counts = torch.histc(maps, 10, 0, 1)
    assert ((counts - 1200).abs() < 5 * 1200**0.5).all()
    again = EXPLANATIONS["random"].maps(asked(3, (4, 6), [ids[7], "another"]))
    assert torch.equal(again[0], maps[7])
    assert not again[2].any()       # nobody asks of it
    assert not torch.equal(maps[0], maps[1])


def test_the_center_is_a_gaussian_of_a_quarter_of_each_side():
    for rows, columns in ((5, 9), (4, 6), (1, 1)):
        maps = EXPLANATIONS["center"].maps(asked(2, (rows, columns), ["a", "b"]))
        y, x = (np.arange(rows) + 0.5) / rows - 0.5, (np.arange(columns) + 0.5) / columns - 0.5
        expected = np.array([[np.exp(-(down**2 + across**2) / (2 * 0.25**2)) for across in x] for down in y])
        assert np.allclose(maps[1, 0], expected / expected.max(), atol=1e-6)
        assert maps.max() == 1


# through eval


def areas(result):
    assert result.exit_code == 0, result.stderr
    return result.records[0]["metrics"]


@pytest.mark.parametrize(("maps", "suffix"), [("attention", "folder"), ("gradcam", "png"), ("gradcam", "h5")])
def test_saved_maps_give_the_same_areas(hk, run, tmp_path, suffix, maps):
    folder, shard = run
    stream = hk("unpack", shard, "--out", tmp_path / "files").stdout
    out = tmp_path / ("maps.h5" if suffix == "h5" else "maps")
    kind = ["--format", "png"] if suffix == "png" else []
    saved = hk("predict", "--from", folder, "--maps", maps, "--out", out, *kind, stdin=stream)
    assert saved.exit_code == 0, saved.stderr
    options = [shard, "--from", folder, *CURVES, "--batch-size", 16]
    expected, found = areas(hk("eval", *options, "--maps", maps)), areas(hk("eval", *options, "--maps", out))
    # in 16 bits, cells that differ by less are alike
    assert found == (pytest.approx(expected, abs=0.01) if suffix == "png" else expected)


def test_a_key_of_the_records(hk, run, tmp_path):
    folder, shard = run
    stream = hk("unpack", shard, "--out", tmp_path / "files").stdout
    records = hk("predict", "--from", folder, "--maps", "gradcam", "--out", tmp_path / "maps", stdin=stream).records
    assert all("gradcam" in record and "attention" not in record for record in records)
    assert hk("pack", tmp_path / "own.h5", stdin=records).exit_code == 0
    options = [tmp_path / "own.h5", "--from", folder, *CURVES, "--batch-size", 16]
    assert areas(hk("eval", *options, "--maps", "gradcam")) != areas(hk("eval", *options))
    # the row of the table comes first
    renamed = [{**record, "grey": record["gradcam"]} for record in records]
    assert hk("pack", tmp_path / "grey.h5", stdin=renamed).exit_code == 0
    options = [tmp_path / "grey.h5", *options[1:]]
    assert areas(hk("eval", *options, "--maps", "grey")) == areas(hk("eval", *options, "--maps", "gradcam"))


def test_a_plain_network_has_the_maps_of_the_table(hk, plain, tmp_path):
    folder, shard = plain
    stream = hk("unpack", shard, "--out", tmp_path / "files").stdout
    found = {}
    for maps in ("cam", "gradcam", "random", "center", "human"):
        result = hk("eval", shard, "--from", folder, "--metric", "mse,insertion", "--maps", maps)
        found[maps] = areas(result)
        assert result.records[0]["settings"]["maps"] == maps
    assert len({figures["insertion"] for figures in found.values()}) == 5
    assert found["human"]["mse"] == 0
    saved = hk("predict", "--from", folder, "--maps", "cam", "--out", tmp_path / "cam", "--key", "where", stdin=stream)
    assert load_map(saved.records[0]["where"]).shape == (4, 4)


def test_without_a_human_map_nothing_is_measured_of_it(hk, run):
    folder, shard = run
    report = hk("eval", shard, "--from", folder, "--metric", "insertion,mse,top1", "--maps", "human").records[0]
    assert report["counts"] == {"insertion": 7, "mse": 7, "mse_of_zeros": 7, "top1": 10}
    rows = list(evaluate(
        load_model(folder), ShardSequence([shard]), EvaluationOptions(("insertion",), maps="human"), CPU
    ))
    assert [row.map is None for row in rows] == [False] * 7 + [True] * 3
    assert [row.values["insertion"] is None for row in rows] == [False] * 7 + [True] * 3
    assert np.array_equal(rows[0].map, ShardSequence([shard]).read(0).map)


def test_no_map_at_all(hk, run):
    folder, shard = run
    options = EvaluationOptions(("top1",), maps="none")
    assert all(row.map is None for row in evaluate(load_model(folder), ShardSequence([shard]), options, CPU))
    result = hk("eval", shard, "--from", folder, "--metric", "top1,mse", "--maps", "none")
    assert (result.exit_code, "--maps none gives no map for mse; choose other --maps" in result.stderr) == (1, True)


def test_the_class_that_is_explained(hk, run):
    folder, shard = run
    options = [shard, "--from", folder, "--metric", "mse", "--maps", "gradcam"]
    predicted, label = (areas(hk("eval", *options, "--target", target)) for target in ("predicted", "label"))
    assert predicted != label
    assert areas(hk("eval", *options, "--layer", "perception.stage")) == predicted
    assert areas(hk("eval", *options, "--layer", "extractor.layer1")) != predicted


def test_a_record_without_label_has_no_curve_of_it(hk, run, tmp_path):
    folder, shard = run
    records = hk("unpack", shard, "--out", tmp_path / "bare").records
    for record in records[:3]:
        del record["label"], record["class"]
    (tmp_path / "names").write_text("class 0\nclass 1\nclass 2\n")
    assert hk("pack", tmp_path / "bare.h5", "--classes", tmp_path / "names", stdin=records).exit_code == 0
    counts = [
        hk("eval", tmp_path / "bare.h5", "--from", folder, *CURVES, "--target", target).records[0]["counts"]
        for target in ("predicted", "label")
    ]
    assert counts == [{"insertion": 10, "deletion": 10}, {"insertion": 7, "deletion": 7}]


def test_an_evaluation_goes_on_with_the_same_layer_alone(hk, run, tmp_path):
    folder, shard = run
    options = ["eval", shard, "--from", folder, "--metric", "mse", "--maps", "gradcam", "--out", tmp_path / "results"]
    assert hk(*options, "--layer", "extractor.layer1").exit_code == 0
    (tmp_path / "results" / "eval.json").unlink()
    refused = hk(*options, "--layer", "perception.stage", "--resume")
    assert (refused.exit_code, "settings.layer is 'perception.stage'" in refused.stderr) == (1, True), refused.stderr


def test_what_is_of_the_networks_own_map_needs_no_other(hk, run):
    folder, shard = run
    for maps in ("human", "none"):
        report = hk("eval", shard, "--from", folder, "--metric", "edit-response,attention_mean", "--maps", maps)
        assert report.exit_code == 0, report.stderr
        assert list(report.records[0]["counts"].values()) == [10, 10, 9, 10]


def test_a_map_replaces_the_networks_own_whatever_is_measured(hk, run):
    folder, shard = run
    options = [shard, "--from", folder, "--metric", "log_loss,insertion", "--use-maps"]
    own, others = areas(hk("eval", *options)), areas(hk("eval", *options, "--maps", "center"))
    assert own["log_loss"] == others["log_loss"] != own["log_loss_before"]
    assert own["insertion"] != others["insertion"]


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_a_map_is_seen_as_its_image_is(fit, tmp_path):
    """A map from a file is seen as the same one is that was packed as the human map."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "wide.h5") as writer:
        for number in range(3):
            image = cv2.imencode(".png", rng.integers(0, 255, (20, 32, 3), dtype=np.uint8))[1].tobytes()
            values = rng.random((8, 8)).astype(np.float32)
            writer.add({"id": f"{number}/a", "image": "x.png"}, image, values, None)
            (tmp_path / "maps").mkdir(exist_ok=True)
            np.save(tmp_path / "maps" / f"{file_name(f'{number}/a')}.npy", values)
    model, shards = load_model(save_run(tmp_path / "abn.safetensors", fit=fit)), ShardSequence([tmp_path / "wide.h5"])
    assert model.map_size == (8, 8)
    found = [
        [row.map for row in evaluate(model, shards, EvaluationOptions(("mse",), maps=maps), CPU)]
        for maps in ("human", str(tmp_path / "maps"))
    ]
    assert np.allclose(*found, atol=1e-7)


# through predict


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_a_saved_map_is_of_the_whole_image(hk, tmp_path, fit):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (20, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    run = save_run(tmp_path / "abn.safetensors", fit=fit)
    record = {"id": "wide", "image": str(tmp_path / "wide.png"), "label": 2}
    for target in ("predicted", "label"):
        options = ["--maps", "gradcam", "--out", tmp_path / target, "--target", target]
        (found,) = hk("predict", "--from", run, *options, stdin=[record]).records
        model = load_model(run)
        model.network.eval()
        view = plain_view(model.preprocessing, (20, 32))
        seen = view_image(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), view, (16, 16), model.preprocessing.padding)
        seen = normalise(torch.from_numpy(seen)[None], model.preprocessing)
        chosen = 2 if target == "label" else found["prediction"]
        features = model.network.features(seen)
        weighted = features * (1 + model.network.look(features).attention)
        activation = model.network.perception.stage(weighted).detach().requires_grad_()
        model.network.perception.fc(activation.mean((2, 3)))[0, chosen].backward()
        total = (activation.grad.mean((2, 3), keepdim=True) * activation.detach()).sum(1).relu()[0]
        expected = map_back((total / total.max()).numpy(), view, tuple(total.shape))
        assert np.allclose(load_map(found["gradcam"]), expected, atol=1e-5)
    assert found["prediction"] != 2


@pytest.mark.parametrize(("options", "code", "sentence"), [
    (["--maps", "gradcam"], 2, "--maps, --layer and --target say which maps to save; give --out too."),
    (["--target", "label"], 2, "give --out too."),
    (["--maps", "human", "--out", "maps"], 1,
     "maps 'human' cannot be made of an image alone; expected one of attention, cam, gradcam, random, center"),
    (["--maps", "none", "--out", "maps"], 1, "maps 'none' cannot be made of an image alone"),
    (["--maps", "grad", "--out", "maps"], 2, "maps 'grad' is unknown; did you mean 'gradcam'?"),
    (["--layer", "extractor", "--out", "maps"], 1, "--layer extractor: maps 'attention' are of no layer"),
])
def test_predict_refuses_what_it_would_not_use(hk, run, options, code, sentence):
    folder, shard = run
    result = hk("predict", "--from", folder, *options, stdin=hk("unpack", shard).stdout)
    assert result.exit_code == code
    assert sentence in " ".join(result.stderr.split())


# what is wrong


@pytest.fixture
def saved(tmp_path):
    """A folder of maps by id, one for each record."""
    with open_writer(tmp_path / "maps") as writer:
        for number in range(10):
            writer.save(f"test.h5-{number}", np.random.default_rng(number).random((8, 8)).astype(np.float32))
    return tmp_path / "maps"


@pytest.mark.parametrize(("values", "sentence"), [
    (None, 'record "test.h5-4": no map in {path}, nor as .png; expected one for each record'),
    (np.zeros((7, 5), np.float32), "{path}: a map of 7x5 (height x width), but {first} has 8x8; expected maps of one "
     "size; pass them through `hkmap resize`"),
    (np.full((8, 8), np.nan, np.float32), "{path}: holds NaN or infinite values, expected [0, 1]"),
    (np.full((4, 4), 255, np.uint8), "{path}: values span [255, 255], expected [0, 1]"),
])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_folder_with_a_bad_map(hk, run, saved, values, sentence, batch_size):
    folder, shard = run
    path = saved / "test.h5-4.npy"
    path.unlink()
    if values is not None:
        np.save(path, values)
    result = hk("eval", shard, "--from", folder, *CURVES, "--maps", saved, "--batch-size", batch_size)
    assert (result.exit_code, result.stdout[:10]) == (1, '{"error": ')
    assert sentence.format(path=path, first=saved / "test.h5-0.npy") in json.loads(result.stdout)["error"]


def test_a_fold_needs_the_maps_of_its_own_records(hk, run, saved):
    folder, shard = run
    options = ["--from", folder, *CURVES, "--fold", "1/2"]
    for path in saved.iterdir():
        path.rename(path.with_suffix(".kept"))
    shards = ShardSequence([shard])
    names = [ids_of(shards)[number] for number in np.flatnonzero(hold_out(shards, 1, Folding(2)).inside)]
    for name in names:
        (saved / f"{name}.kept").rename(saved / f"{name}.npy")
    assert hk("eval", shard, *options, "--maps", saved).records[0]["samples"] == len(names) == 5


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda file: file.pop("ids"), "maps.h5: has no dataset `ids`; expected maps by id"),
    (lambda file: file["ids/bytes"].write_direct(np.frombuffer(b"x", np.uint8), None, np.s_[-1:]),
     'record "test.h5-1": {path} has no map of this id; expected one for each record'),
    (lambda file: file["ids/bytes"].write_direct(np.frombuffer(b"0", np.uint8), None, np.s_[-1:]),
     "{path}: holds 2 maps of 1 ids; expected one map of an id; make it again"),
])
def test_an_h5_file_with_other_ids(hk, run, tmp_path, change, sentence):
    folder, shard = run
    path = tmp_path / "maps.h5"
    with open_writer(path) as writer:
        for number in range(2):
            writer.save(f"test.h5-{number}", np.zeros((4, 4), np.float32))
    with h5py.File(path, "r+") as file:
        change(file)
    result = hk("eval", shard, "--from", folder, *CURVES, "--maps", path)
    assert result.exit_code == 1
    assert sentence.format(path=path) in json.loads(result.stdout)["error"]


def test_a_key_that_a_record_lacks(hk, run, saved, tmp_path):
    folder, shard = run
    records = hk("unpack", shard, "--out", tmp_path / "again").records
    for record in records:
        record["looked"] = str(saved / f"{file_name(record['id'])}.npy")
    del records[4]["looked"]
    assert hk("pack", tmp_path / "own.h5", stdin=records).exit_code == 0
    result = hk("eval", tmp_path / "own.h5", "--from", folder, *CURVES, "--maps", "looked")
    assert 'own.h5#4: record "test.h5-4" has no key "looked"; expected a map reference in each' in result.stderr
    refused = hk("eval", tmp_path / "own.h5", "--from", folder, *CURVES, "--maps", "class")      # a key of no maps
    assert "maps 'class' are unknown; expected one of attention," in refused.stderr
    unknown = hk("eval", tmp_path / "own.h5", "--from", folder, *CURVES, "--maps", "lookd")
    assert unknown.exit_code == 1
    assert (
        "maps 'lookd' are unknown; did you mean 'looked'? expected one of attention, cam, gradcam, human, random, "
        "center, none; a key of the records with a map reference (map, looked); or an existing folder or "
        "NAME.h5 of maps by id"
    ) in json.loads(unknown.stdout)["error"]


@pytest.mark.parametrize(("options", "sentence"), [
    (["--maps", "gradcm"], "maps 'gradcm' are unknown; did you mean 'gradcam'?"),
    (["--maps", "missing/"], "maps 'missing/' are unknown; expected one of attention,"),
    (["--maps", "missing.h5"], "a key of the records with a map reference (the first has none)"),
    (["--layer", "perception.stage"], "--layer perception.stage: maps 'attention' are of no layer; use --maps gradcam"),
    (["--maps", "random", "--layer", "perception"], "--layer perception: maps 'random' are of no layer"),
    (["--maps", "gradcam", "--layer", "perception.sage"], "did you mean 'perception.stage'?"),
])
def test_eval_refuses_names_that_lead_nowhere(hk, run, options, sentence):
    folder, shard = run
    result = hk("eval", shard, "--from", folder, *CURVES, *options)
    assert result.exit_code == 1
    assert sentence in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(("maps", "sentence"), [
    (torch.zeros(3, 4, 4), r"explain gave maps of shape \(3, 4, 4\); expected \(3, 1, h, w\)"),
    (torch.tensor([0, 0, torch.nan]).view(3, 1, 1, 1), 'record "c": its map holds NaN or infinite values'),
])
def test_a_function_that_gives_no_maps(maps, sentence):
    with pytest.raises(RunError, match=sentence):
        maps_of_batch(lambda _: maps, asked())
    if maps.ndim == 4:      # nobody asks of the last
        assert maps_of_batch(lambda _: maps, asked(ids=("a", "b"))) is maps


PACKAGE = """
from hkmap.evaluation.explain import Explanation
CORNER = Explanation("The upper left.", lambda asked: asked.batch.maps * 0 + (asked.batch.maps.shape[2] == 4))
"""


def test_a_row_of_another_package(hk, run, installed):
    folder, shard = run
    installed("corners", PACKAGE, group="hkmap.explanations", corner="corners:CORNER")
    assert areas(hk("eval", shard, "--from", folder, "--metric", "mse", "--maps", "corner"))["mse"] > 0
    (row,) = [row for row in hk("list", "explanations").records if row["name"] == "corner"]
    assert row == {"name": "corner", "doc": "The upper left.", "origin": "corners"}
    assert isinstance(EXPLANATIONS["corner"], Explanation)
