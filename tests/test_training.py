"""Runs from start to end on small shards: what is kept, what is frozen, what goes on after a break."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import overridden

from hkmap.engine import runs
from hkmap.engine.data import ShardExamples, check_classes, in_order, make_data, normalise
from hkmap.engine.folders import RUN_FILES, read_config
from hkmap.engine.inputs import Preprocessing
from hkmap.engine.runs import load_model, new_model
from hkmap.errors import RunError
from hkmap.networks.backbone import Architecture
from hkmap.shards.sequence import ShardSequence
from hkmap.training import fitting as training_module
from hkmap.training.steps import Step, Training

SMALL = ["--arch", "resnet8+abn", "--stem", "small", "--width", "4", "--image-size", "16", "--batch-size", "4"]

OFTEN = ["--checkpoint-every", 1e-9]        # after each step


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).network.state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts (extractor, attention, perception) of which some tensor differs by a bit."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def run(hk, make_shard, tmp_path):
    """A trained run and its shard."""
    shard = make_shard("train.h5", 12, maps=9)
    result = hk("train", shard, *SMALL, "--epochs", 2, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    return tmp_path / "run", shard, result


def test_train_keeps_a_run(run):
    folder, _, result = run
    assert {path.name for path in folder.iterdir()} == set(RUN_FILES)
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(step["epoch"], step["step"]) for step in steps] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert all(math.isfinite(step["loss"]) for step in steps)
    assert Step(**steps[0]).step == 1
    assert result.records[0]["steps"] == 6
    config = read_config(folder / "config.toml")
    assert config["arch"] == "resnet8+abn"
    assert config["classes"] == ["class 0", "class 1"]
    assert config["mean"] == [0.485, 0.456, 0.406]


def test_train_learns(hk, make_shard, tmp_path):
    shard, test = make_shard("train.h5", 32), make_shard("test.h5", 32, seed=9)
    hk("train", shard, *SMALL, "--epochs", 8, "--lr", 0.05, "--val", test, "--out", tmp_path / "run")
    result = hk("eval", test, "--from", tmp_path / "run", "--metric", "top1")
    assert result.records[0]["metrics"]["top1"] > 0.9


def test_the_same_seed_gives_the_same_run_and_another_seed_another(hk, run, tmp_path):
    folder, shard, _ = run
    hk("train", shard, *SMALL, "--epochs", 2, "--out", tmp_path / "again")
    hk("train", shard, *SMALL, "--epochs", 2, "--seed", 1, "--out", tmp_path / "other")
    assert changed(weights_of(folder), weights_of(tmp_path / "again")) == set()
    assert changed(weights_of(folder), weights_of(tmp_path / "other")) == {"extractor", "attention", "perception"}


@pytest.mark.parametrize(("update", "parts"), [("both", {"attention", "perception"}), ("attention", {"attention"})])
def test_finetune_changes_what_it_says_and_not_a_bit_more(hk, run, tmp_path, update, parts):
    folder, shard, _ = run
    result = hk("finetune", shard, "--from", folder, "--update", update, "--epochs", 2, "--out", tmp_path / "tuned")
    assert result.exit_code == 0, result.stderr
    before, after = weights_of(folder), weights_of(tmp_path / "tuned")
    assert changed(before, after) == parts
    buffers = [name for name in before if "running_" in name and name.startswith("extractor")]
    assert buffers
    assert all(torch.equal(before[name], after[name]) for name in buffers)


def test_finetune_moves_the_attention_towards_the_human_maps(hk, make_shard, tmp_path):
    shard = make_shard("train.h5", 16)
    hk("train", shard, *SMALL, "--epochs", 1, "--out", tmp_path / "run")
    distances = {}
    for gamma in (0, 5):
        out = tmp_path / f"gamma{gamma}"
        hk("finetune", shard, "--from", tmp_path / "run", "--gamma", gamma, "--epochs", 8, "--lr", 0.05, "--out", out)
        distances[gamma] = hk("eval", shard, "--from", out, "--metric", "mse").records[0]["metrics"]["mse"]
    assert distances[5] < 0.5 * distances[0]


def test_the_sham_control_says_so_in_every_output(hk, run, tmp_path):
    folder, shard, _ = run
    out = tmp_path / "sham"
    result = hk("finetune", shard, "--from", folder, "--control", "shuffled", "--epochs", 1, "--out", out)
    assert "sham control" in result.stderr
    assert result.records[0]["control"] == "shuffled"
    assert json.loads((out / "summary.json").read_text())["control"] == "shuffled"
    assert read_config(out / "config.toml")["control"] == "shuffled"
    evaluated = hk("eval", shard, "--from", out, "--metric", "top1")
    assert evaluated.records[0]["control"] == "shuffled"
    assert "sham control" in evaluated.stderr
    predicted = hk("predict", "--from", out, stdin=hk("unpack", shard).stdout)
    assert all(record["control"] == "shuffled" for record in predicted.records)


@pytest.mark.parametrize("augment", [[], ["--augment", "mirror", "--augment", "crop"]])
def test_resume_is_bit_equal_to_an_unbroken_run(hk, run, tmp_path, monkeypatch, augment):
    _, shard, _ = run
    command = ["train", shard, *SMALL, *augment, "--epochs", 4, "--val-share", 0.25, *OFTEN, "--out"]
    assert hk(*command, tmp_path / "whole").exit_code == 0

    broken = Training.run_epoch

    def interrupted(self, feed):
        for step in broken(self, feed):
            if step.step == 8:      # in the middle of epoch 3
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Training, "run_epoch", interrupted)
    broken_off = hk(*command, tmp_path / "broken")
    monkeypatch.undo()
    assert (broken_off.exit_code, broken_off.stderr.splitlines()[-1]) == (130, "interrupted")
    assert broken_off.records == [{"error": "interrupted"}]
    state = torch.load(tmp_path / "broken/state.pt", weights_only=True)
    assert (state["epoch"], state["step_in_epoch"], state["step"]) == (3, 1, 7)
    assert not (tmp_path / "broken/summary.json").exists()
    assert not list(tmp_path.rglob("*.part"))
    result = hk(*command, tmp_path / "broken", "--resume")
    assert result.exit_code == 0, result.stderr
    for name in ("last.safetensors", "best.safetensors"):
        assert changed(weights_of(tmp_path / "whole" / name), weights_of(tmp_path / "broken" / name)) == set()
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    for whole_step, broken_step in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert (whole_step["step"], whole_step["epoch"]) == (broken_step["step"], broken_step["epoch"])
        assert whole_step["loss"] == pytest.approx(broken_step["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_an_interrupt_while_a_checkpoint_is_written_loses_no_line_of_the_log(hk, run, tmp_path, monkeypatch, name):
    _, shard, _ = run
    command = ["train", shard, *SMALL, "--epochs", 3, "--val-share", 0.25, *OFTEN, "--out"]
    assert hk(*command, tmp_path / "whole").exit_code == 0
    written: list[Path] = []

    def interrupted(path, model, *weights):
        runs.save_model(path, model, *weights)
        written.append(path)
        if path.name == name and sum(other.name == name for other in written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_module, "save_model", interrupted)
    assert hk(*command, tmp_path / "broken").exit_code == 130
    monkeypatch.undo()
    way = "--resume" if (tmp_path / "broken/state.pt").exists() else "--overwrite"
    assert hk(*command, tmp_path / "broken", way).exit_code == 0
    logs = [(tmp_path / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "broken")]
    steps = [[json.loads(line)["step"] for line in log] for log in logs]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1))
    for checkpoint in ("last.safetensors", "best.safetensors"):
        pair = [weights_of(tmp_path / folder / checkpoint) for folder in ("whole", "broken")]
        assert changed(*pair) == set()


def test_resume_refuses_other_options_and_a_folder_without_a_run(hk, run, tmp_path):
    folder, shard, _ = run
    other = hk("train", shard, *SMALL, "--epochs", 2, "--lr", 0.5, "--out", folder, "--resume")
    assert other.exit_code == 1
    assert "lr is 0.5, the run to resume had 0.01" in other.stderr
    empty = hk("train", shard, *SMALL, "--epochs", 2, "--out", tmp_path / "empty", "--resume")
    assert "no run to resume" in empty.stderr


def test_a_run_is_not_overwritten_unasked(hk, run):
    folder, shard, _ = run
    again = hk("train", shard, *SMALL, "--epochs", 1, "--out", folder)
    assert again.exit_code == 1
    assert "holds a run already; choose another --out, or use --overwrite or --resume" in again.stderr
    assert hk("train", shard, *SMALL, "--epochs", 1, "--out", folder, "--overwrite").exit_code == 0
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3


def test_config_repeats_a_run(hk, run, tmp_path):
    folder, shard, _ = run
    result = hk("train", "--config", folder / "config.toml", shard, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    assert changed(weights_of(folder), weights_of(tmp_path / "again")) == set()


def test_val_share_holds_samples_out_and_best_is_chosen_on_them(hk, run, tmp_path):
    _, shard, _ = run
    result = hk("train", shard, *SMALL, "--epochs", 3, "--val-share", 0.34, "--out", tmp_path / "held")
    assert result.exit_code == 0
    steps = [json.loads(line) for line in (tmp_path / "held/log.jsonl").read_text().splitlines()]
    assert len(steps) == 3 * 2      # 8 of 12 samples, 4 a batch
    figures = [(step["validation"]["top1"], -step["validation"]["loss"]) for step in steps if step["epoch_ends"]]
    assert result.records[0]["best"]["epoch"] == 1 + figures.index(max(figures))


def test_held_out_samples_are_never_trained_on(make_shard):
    shard = ShardSequence([make_shard("train.h5", 12)])
    model = new_model(Architecture("resnet8+abn", 2, "small", 4), Preprocessing(16, 16), shard.classes, 0)
    data = make_data(model, shard, None, val_share=0.25, seed=3)
    assert data.validation is not None
    assert sorted([*data.indices, *data.validation.indices]) == list(range(12))
    assert len(data.validation.indices) == 3


def test_bfloat16_trains(hk, run, tmp_path):
    folder, shard, _ = run
    half = ["--precision", "bfloat16", "--epochs", 1]
    result = hk("finetune", shard, "--from", folder, *half, "--out", tmp_path / "half")
    assert result.exit_code == 0, result.stderr
    assert math.isfinite(result.records[0]["best"]["loss"])


def test_a_plain_network_trains_and_cannot_be_finetuned(hk, run, tmp_path):
    _, shard, _ = run
    plain = ["--arch", "resnet8", *SMALL[2:]]
    assert hk("train", shard, *plain, "--epochs", 1, "--out", tmp_path / "plain").exit_code == 0
    result = hk("finetune", shard, "--from", tmp_path / "plain", "--epochs", 1, "--out", tmp_path / "no")
    assert result.exit_code == 1
    assert "no attention branch to fine-tune; train one with an --arch that ends in +abn" in result.stderr
    assert not (tmp_path / "no").exists()


def test_a_loss_that_is_no_number_stops_the_run(hk, run, tmp_path):
    _, shard, _ = run
    result = hk("train", shard, *SMALL, "--epochs", 3, "--lr", 1000, "--weight-decay", 1000, "--out", tmp_path / "wild")
    assert result.exit_code == 1
    assert "the loss became nan in epoch 2, at step 4, on " in result.stderr
    assert not (tmp_path / "wild/state.pt").exists()


def test_a_loss_that_is_no_number_names_the_records(hk, run, tmp_path):
    _, shard, _ = run
    wild = ["--epochs", 1, "--lr", 1000, "--weight-decay", 1000, "--batch-size", 2, "--out", tmp_path / "wild"]
    result = hk("train", shard, *overridden(SMALL, *wild))
    assert result.exit_code == 1
    records = r"\S*train.h5#\d+, \S*train.h5#\d+"
    assert re.search(rf"the loss became nan in epoch 1, at step \d, on {records}; try a lower --lr", result.stderr)


@pytest.mark.parametrize(("arguments", "sentence"), [
    *((["--device", name], f'--device "{name}" is unknown; expected auto, cpu, cuda or cuda:N')
      for name in ("abacus", "mps", "xla", "meta", "fpga", "cuda:-1", "cuda:1e3", "cpu:99999999999", "")),
    (["--weights", __file__], "not a checkpoint that can be read safely"),
])
def test_a_wrong_option_is_a_sentence(hk, run, tmp_path, arguments, sentence):
    _, shard, _ = run
    result = hk("train", shard, *SMALL, "--epochs", 1, *arguments, "--out", tmp_path / "no")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not (tmp_path / "no" / "state.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_asking_for_cuda_without_one_is_a_sentence(hk, run, tmp_path):
    _, shard, _ = run
    result = hk("train", shard, *SMALL, "--device", "cuda", "--out", tmp_path / "no")
    assert result.exit_code == 1
    assert "no CUDA device that torch can use; use --device cpu" in result.stderr


def test_maps_are_asked_for_where_there_are_none(hk, make_shard, tmp_path):
    shard = make_shard("bare.h5", 8, maps=0)
    assert hk("train", shard, *SMALL, "--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    result = hk("finetune", shard, "--from", tmp_path / "run", "--epochs", 1, "--out", tmp_path / "no")
    assert "no training sample has a map, which the map loss needs; use --gamma 0" in result.stderr
    labels = hk("finetune", shard, "--from", tmp_path / "run", "--gamma", 0, "--epochs", 1, "--out", tmp_path / "yes")
    assert labels.exit_code == 0


def test_few_maps_are_told_of(hk, make_shard, tmp_path):
    few, many = make_shard("few.h5", 12, maps=2), make_shard("many.h5", 12, maps=3)
    assert hk("train", few, *SMALL, "--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    told = "2 of 12 training samples have a map; the map loss is a mean over all samples, so it counts 6 times less"
    for shard, gamma, expected in ((few, 1, True), (few, 0, False), (many, 1, False)):
        tuned = hk("finetune", shard, "--from", tmp_path / "run", "--gamma", gamma, "--epochs", 1, "--out",
                   tmp_path / f"{shard.stem}{gamma}")
        assert tuned.exit_code == 0
        assert (told in tuned.stderr) is expected


def test_classes_that_do_not_fit_are_refused(hk, run, make_shard, tmp_path):
    folder, shard, _ = run
    more = make_shard("more.h5", 8, classes=4)
    for command in (
        ("eval", more, "--from", folder, "--metric", "top1"),
        ("train", shard, *SMALL, "--val", more, "--out", tmp_path / "no"),
    ):
        result = hk(*command)
        assert result.exit_code == 1
        assert "label 3 is beyond the network's 2 classes; pack all shards with the same --classes" in result.stderr
    assert not (tmp_path / "no").exists()


def test_class_names_that_differ_are_refused(make_shard):
    shard = ShardSequence([make_shard("train.h5", 4)])
    model = new_model(Architecture("resnet8+abn", 2, "small", 4), Preprocessing(16, 16), ["class 0", "dog"], 0)
    with pytest.raises(RunError, match='label 1 is "class 1", for the network it is "dog"'):
        check_classes(model, shard)


def test_a_shard_without_labels_trains_nothing(hk, make_shard, tmp_path):
    records = hk("unpack", make_shard("train.h5", 4)).records
    bare = [{key: value for key, value in record.items() if key not in ("label", "class")} for record in records]
    assert hk("pack", tmp_path / "bare.h5", stdin=bare).exit_code == 0
    result = hk("train", tmp_path / "bare.h5", *SMALL, "--out", tmp_path / "no")
    assert (result.exit_code, "the training shard has no labels; give its records" in result.stderr) == (1, True)


def test_a_sample_without_a_label_is_named(make_shard, monkeypatch):
    shard = ShardSequence([make_shard("train.h5", 4)])
    shard.labels = np.array([0, 1, -1, 1])
    model = new_model(Architecture("resnet8+abn", 2, "small", 4), Preprocessing(16, 16), shard.classes, 0)
    with pytest.raises(RunError, match=r"train.h5#2: has no label"):
        make_data(model, shard, None)


@pytest.mark.parametrize(("content", "sentence"), [
    (b"", "not a readable checkpoint"),
    (b"PK\x03\x04 cut off", "not a readable checkpoint"),
])
def test_a_damaged_checkpoint_is_a_sentence(tmp_path, content, sentence):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(RunError, match=sentence):
        load_model(tmp_path / "last.pt")


def test_foreign_and_newer_checkpoints_are_refused(tmp_path):
    torch.save({"format": "hkmap-checkpoint", "version": 99}, tmp_path / "newer.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(RunError, match="version 99, this hkmap reads up to 2; update hkmap"):
        load_model(tmp_path / "newer.pt")
    with pytest.raises(RunError, match="not an hkmap checkpoint"):
        load_model(tmp_path / "foreign.pt")
    with pytest.raises(RunError, match="no such checkpoint; expected a run folder"):
        load_model(tmp_path)


def test_a_lone_last_sample_and_a_single_sample(hk, make_shard, tmp_path):
    """Batch norm cannot learn from one sample whose last feature map is 1 x 1."""
    tiny = ["--arch", "resnet18+abn", "--width", 2, "--image-size", 32, "--batch-size", 4, "--epochs", 1]
    lone = hk("train", make_shard("nine.h5", 9), *tiny, "--out", tmp_path / "nine")
    assert lone.exit_code == 0, lone.stderr
    assert lone.records[0]["steps"] == 2
    single = hk("train", make_shard("one.h5", 1), *tiny, "--out", tmp_path / "one")
    assert single.exit_code == 1
    assert "1 sample to train on; batch norm needs at least two" in single.stderr
    assert not (tmp_path / "one").exists()


def test_validation_tells_the_map_mse_too(hk, run, tmp_path):
    _, shard, _ = run
    result = hk("train", shard, *SMALL, "--epochs", 1, "--val", shard, "--out", tmp_path / "validated")
    assert set(result.records[0]["best"]["validation"]) == {
        "top1", "loss", "total", "attention_mean", "mse", "mse_of_zeros"
    }


OUT_OF_RANGE = {
    "--seed": (2**64, -1, "nan"), "--lr": ("1e308", "nan", "inf", 0, -1, 1001), "--epochs": (10**30, 0, "1" * 5000),
    "--width": (10**6, 0), "--image-size": (10**5, 7, "16x10000000", "0", "x"), "--val-share": ("nan", 1, -0.1, "inf"),
    "--batch-size": (10**12, 1), "--momentum": ("nan", 1, -1), "--weight-decay": ("inf", "nan", -1),
}


@pytest.mark.parametrize(("option", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]])
def test_a_number_out_of_its_range_is_a_sentence(hk, make_shard, tmp_path, option, value):
    result = hk("train", make_shard("train.h5", 4), *overridden(SMALL, option, value), "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("command", "options"), [
    ("train", ("--lr", "--epochs", "--width", "--seed", "--val-share", "--batch-size", "--momentum", "--weight-decay")),
    ("finetune", ("--gamma", "--lr")), ("eval", ("--step", "--batch-size")), ("predict", ("--batch-size",)),
])
def test_the_help_states_the_range(hk, command, options):
    text = " ".join(re.split(r"Example:\n(?:.+\n)+", hk(command, "--help").stdout)[1].split())
    for option in options:
        described = re.split(r" --[a-z-]+ (?=[A-Z])", text[text.index(f" {option} ") + 3 :])[0]
        assert re.search(r"[0-9]<=?x<=?[0-9]", described), described


def test_one_class_trains_nothing(hk, make_shard, run, tmp_path):
    folder, _, _ = run
    shard = make_shard("one.h5", 8, classes=1)
    for command in (["train", *SMALL], ["finetune", "--from", folder]):
        result = hk(*command, shard, "--epochs", 1, "--out", tmp_path / "no")
        assert result.exit_code == 1
        assert 'one.h5: only one class to train on, "class 0"; give records of two classes or more' in result.stderr
        assert not (tmp_path / "no").exists()


# which epoch best.pt is


def validations(folder: Path) -> list[dict[str, float]]:
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [step["validation"] for step in steps if step["epoch_ends"]]


def test_both_arms_of_a_finetuning_keep_the_last_epoch(hk, run, tmp_path):
    folder, shard, _ = run
    command = ["finetune", shard, "--from", folder, "--epochs", 3, "--val-share", 0.34, "--batch-size", 4, "--out"]
    for arm in ("none", "shuffled"):
        result = hk(*command, tmp_path / arm, "--control", arm)
        assert (result.records[0]["select"], result.records[0]["best"]["epoch"]) == ("last", 3)
        assert read_config(tmp_path / arm / "config.toml")["select"] == "last"
        assert json.loads((tmp_path / arm / "summary.json").read_text())["select"] == "last"
        kept = [weights_of(tmp_path / arm / name) for name in ("last.safetensors", "best.safetensors")]
        assert changed(*kept) == set()
    assert "[default: last]" in " ".join(hk("finetune", "--help").stdout.split())
    assert "[default: top1 with validation data, else last]" in " ".join(hk("train", "--help").stdout.split())


@pytest.mark.parametrize(("select", "rank"), [
    ("last", None), ("top1", lambda found: (found["top1"], -found["loss"])), ("loss", lambda found: -found["loss"]),
    ("total", lambda found: -found["total"]), ("mse", lambda found: -found["mse"]),
])
def test_select_says_which_epoch_is_kept(hk, run, tmp_path, select, rank):
    folder, shard, _ = run
    command = ["finetune", shard, "--from", folder, "--epochs", 4, "--val", shard, "--lr", 0.1, "--gamma", 3]
    result = hk(*command, "--select", select, "--out", tmp_path / "tuned")
    assert result.exit_code == 0, result.stderr
    ranks = list(map(rank, validations(tmp_path / "tuned"))) if rank else [0, 0, 0, 1]
    epoch = 1 + ranks.index(max(ranks))
    assert result.records[0]["best"]["epoch"] == epoch
    assert result.records[0]["best"]["validation"] == validations(tmp_path / "tuned")[epoch - 1]
    pair = [weights_of(tmp_path / "tuned" / name) for name in ("best.safetensors", "last.safetensors")]
    assert (changed(*pair) == set()) == (epoch == 4)


def test_total_is_what_is_minimised(hk, run, tmp_path):
    """Of the samples that are trained on, with weights that stay as they are: the loss of the log's steps."""
    folder, shard, _ = run
    options = ["--epochs", 1, "--lr", 1e-30, "--batch-size", 12, "--gamma", 2, "--val", shard]
    assert hk("finetune", shard, "--from", folder, *options, "--out", tmp_path / "tuned").exit_code == 0
    model, (found,) = load_model(folder), validations(tmp_path / "tuned")
    examples = ShardExamples(ShardSequence([shard]), model.preprocessing, model.map_size)
    ((_, batch),) = in_order(examples, np.arange(12), 12)
    with torch.no_grad():
        output = load_model(tmp_path / "tuned").network(normalise(batch.images, model.preprocessing))
    of_labels = [torch.nn.functional.cross_entropy(logits, batch.labels) for logits in output[:2]]
    norms = [
        torch.linalg.vector_norm(output.attention[row] - batch.maps[row]) * (batch.certainty[row].max() > 0)
        for row in range(12)
    ]
    assert found["total"] == pytest.approx(float(sum(of_labels) + 2 * sum(norms) / 12), rel=1e-5)
    assert found["loss"] == pytest.approx(float(of_labels[0]), rel=1e-5)


@pytest.mark.parametrize(("options", "sentence"), [
    (["--select", "top1"], "--select top1 needs validation data; give --val or --val-share, or use --select last"),
    (["--select", "best"], "selection 'best' is unknown; expected one of last, top1, loss, total, mse"),
    (["--arch", "resnet8", "--select", "mse", "--val-share", 0.3], "--select mse needs human maps"),
])
def test_a_selection_that_cannot_be_is_a_sentence(hk, run, tmp_path, options, sentence):
    result = hk("train", run[1], *overridden(SMALL, *options), "--out", tmp_path / "no")
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("known", "names", "labels", "sentence"), [
    (("a", "b"), ["a", "b"], [0, 1], None),
    (("a", "b", "c"), ["a", "b"], [0, 1], None),
    (("", ""), ["a", "b"], [0, 1], None),
    (("a", "b"), ["", ""], [0, 1], None),
    (("a", "b", "c"), ["a", "", "c"], [0, 2], None),
    (("a", "b", "c"), ["", ""], [-1, -1], None),
    (("a", "b", "c"), ["", ""], [0, 1], "has 2 classes, the network 3, and no name on both sides tells that label 0"),
    (("", "", ""), ["a", "b"], [0, 1], "has 2 classes, the network 3, and no name"),
    (("a", "b", "c"), ["a", ""], [0, 1], "no name on both sides tells that label 1 is the same"),
    (("a", "b"), ["b", "a"], [-1, 1], 'label 0 is "b", for the network it is "a"'),
])
def test_names_of_classes_that_are_missing_hide_no_mismatch(known, names, labels, sentence):
    shards = SimpleNamespace(name="x.h5", labels=np.array(labels), classes=names)
    model = SimpleNamespace(class_names=known)
    if sentence is None:
        check_classes(model, shards)
    else:
        with pytest.raises(RunError, match=sentence):
            check_classes(model, shards)
