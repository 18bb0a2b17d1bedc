"""A run's folder: who may write it, what a new run replaces and when, full disks, links, odd names, odd configs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import overridden, replace, rewrite
from test_training import OFTEN, SMALL, changed, weights_of

from hkmap import __version__
from hkmap.cli.main import hkmap
from hkmap.engine.checkpoints import save_state
from hkmap.engine.folders import RUN_FILES, read_config, read_info, write_config, write_json
from hkmap.engine.runs import LAST, in_words, load_model
from hkmap.files.atomic import locked
from hkmap.files.hdf5 import file_digest
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter
from hkmap.training.steps import Training

ONE = [*SMALL, "--epochs", 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of one epoch of two steps, and its shard."""
    folder, dice = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    with ShardWriter(folder / "train.h5") as writer:
        for number in range(8):
            image = cv2.imencode(".png", dice.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1].tobytes()
            record = {"id": f"{number}", "image": "x.png", "label": number % 2, "class": "ab"[number % 2]}
            writer.add(record, image, np.full((8, 8), number / 8, np.float32), None)
    command = ["train", folder / "train.h5", *ONE, "--out", folder / "run"]
    assert CliRunner().invoke(hkmap, list(map(str, command))).exit_code == 0
    return folder / "run", folder / "train.h5"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Its copies."""
    shard = shutil.copy(trained[1], tmp_path / "train.h5")
    config = read_config(shutil.copytree(trained[0], tmp_path / "run") / "config.toml")
    write_config(tmp_path / "run/config.toml", {**config, "shards": [str(shard)]})
    return tmp_path / "run", shard


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A disk that is full once a file has so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# overwriting


def fail_at(step: int):
    whole = Training.run_epoch

    def run_epoch(self, feed):
        for found in whole(self, feed):
            if found.step == step:
                raise KeyboardInterrupt
            yield found

    return run_epoch


def test_overwrite_keeps_the_old_run_until_the_new_one_has_a_checkpoint(hk, run, tmp_path, monkeypatch):
    folder, shard = run
    before = held(folder)
    monkeypatch.setattr(Training, "run_epoch", fail_at(2))      # of two steps an epoch
    assert hk("train", shard, *ONE, "--lr", 0.5, "--out", folder, "--overwrite").exit_code == 130
    assert held(folder) == before
    monkeypatch.undo()
    monkeypatch.setattr(Training, "run_epoch", fail_at(3))
    command = ["train", shard, *SMALL, "--epochs", 2, "--lr", 0.5, *OFTEN, "--out", folder]
    assert hk(*command, "--overwrite").exit_code == 130
    assert set(held(folder)) == set(RUN_FILES) - {"summary.json"}
    assert read_config(folder / "config.toml")["lr"] == 0.5
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    monkeypatch.undo()
    assert hk(*command, "--resume").exit_code == 0
    assert hk(*command[:-1], tmp_path / "whole").exit_code == 0
    assert changed(weights_of(folder), weights_of(tmp_path / "whole")) == set()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4


def test_what_a_killed_run_left_is_removed_and_a_link_in_its_place_is_not_followed(hk, run, tmp_path):
    folder, shard = run
    (folder / ".begun-killed").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (folder / ".begun-link").symlink_to(tmp_path / "precious")
    assert hk("train", shard, *ONE, "--out", folder, "--overwrite").exit_code == 0
    assert not (folder / ".begun-killed").exists()
    assert (tmp_path / "precious/file").read_text() == "mine"


@pytest.mark.parametrize("name", [*RUN_FILES, "best.pt", "last.pt"])
def test_a_file_of_that_name_is_not_overwritten_unasked(hk, run, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    result = hk("train", run[1], *ONE, "--out", tmp_path / "mine")
    assert "holds a run already" in result.stderr
    assert held(tmp_path / "mine") == {name: b"mine"}


# two at once


@pytest.mark.parametrize("way", ["--resume", "--overwrite"])
def test_one_run_at_a_time_writes_a_folder(hk, run, way):
    folder, shard = run
    before = held(folder)
    with locked(folder / "log.jsonl"):
        result = hk("train", shard, *ONE, "--out", folder, way)
    assert result.exit_code == 1
    assert "run/log.jsonl: another run is writing it; wait for its end, or choose another name" in result.stderr
    assert held(folder) == before


def test_a_run_holds_the_lock_from_its_start_to_its_end(hk, run, monkeypatch):
    folder, shard = run
    whole, seen = Training.run_epoch, []

    def run_epoch(self, feed):
        with open(folder / ".log.jsonl.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                seen.append(self.epoch)
        yield from whole(self, feed)

    monkeypatch.setattr(Training, "run_epoch", run_epoch)
    assert hk("train", shard, *SMALL, "--epochs", 2, "--out", folder, "--overwrite").exit_code == 0
    assert seen == [0, 1]
    assert set(held(folder)) == set(RUN_FILES)


def test_a_refused_run_leaves_no_folder(hk, run, tmp_path):
    _, shard = run
    assert "no run to resume" in hk("train", shard, *ONE, "--out", tmp_path / "no", "--resume").stderr
    assert not (tmp_path / "no").exists()


# files of our own read back


def test_a_link_in_the_place_of_the_log_is_not_written_through(hk, run, tmp_path):
    _, shard = run
    (tmp_path / "other").mkdir()
    (tmp_path / "precious").write_text("mine\n")
    (tmp_path / "other/log.jsonl").symlink_to(tmp_path / "precious")
    assert hk("train", shard, *ONE, "--out", tmp_path / "other").exit_code == 1
    assert hk("train", shard, *ONE, "--out", tmp_path / "other", "--overwrite").exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine\n"
    assert not (tmp_path / "other/log.jsonl").is_symlink()


def test_resume_writes_beside_a_link_in_the_place_of_any_file(hk, run, tmp_path):
    folder, shard = run
    (tmp_path / "elsewhere").mkdir()
    for name in RUN_FILES:
        (folder / name).rename(tmp_path / "elsewhere" / name)
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    before = held(tmp_path / "elsewhere")
    assert hk("train", "--config", folder / "config.toml", shard, "--out", folder, "--resume").exit_code == 0
    assert held(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda log: log[:1], "log.jsonl: not the log of this run's state, of 2 steps"),
    (lambda log: [log[0].replace("1", "2", 1), log[1]], "log.jsonl: not the log of this run's state"),
    (lambda log: [log[1], log[0]], "log.jsonl: not the log of this run's state"),
])
def test_a_changed_log_is_not_resumed(hk, run, change, sentence):
    folder, shard = run
    log = folder / "log.jsonl"
    log.write_text("".join(line + "\n" for line in change(log.read_text().splitlines())))
    result = hk("train", shard, *ONE, "--out", folder, "--resume")
    assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr


def test_a_state_of_another_run_is_not_resumed(hk, run, tmp_path):
    folder, shard = run
    assert hk("train", shard, "--arch", "resnet8", *ONE[2:], "--out", tmp_path / "plain").exit_code == 0
    (folder / "state.pt").write_bytes((tmp_path / "plain/state.pt").read_bytes())
    result = hk("train", shard, *ONE, "--out", folder, "--resume")
    assert f"{folder / 'state.pt'}: lacks weights attention." in result.stderr
    assert hk("train", shard, *ONE, "--seed", 5, "--out", tmp_path / "other").exit_code == 0
    (folder / "state.pt").write_bytes((tmp_path / "other/state.pt").read_bytes())
    result = hk("train", shard, *ONE, "--out", folder, "--resume")
    assert "log.jsonl: not the log of this run's state, of 2 steps" in result.stderr


# what may differ when a run goes on


def test_a_run_goes_on_wherever_its_shards_lie(hk, run, tmp_path, monkeypatch):
    folder, shard = run
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(shard, tmp_path / "moved/renamed.h5")
    monkeypatch.chdir(tmp_path)
    assert hk("train", "moved", *SMALL, "--epochs", 2, "--device", "cpu", "--out", "run", "--resume").exit_code == 0
    assert read_config(folder / "config.toml")["shards"] == ["moved/renamed.h5"]
    info = read_info(folder)
    assert [file["path"] for file in info["files"]["shards"]] == ["moved/renamed.h5"]
    assert [session["device"] for session in info["sessions"]] == [in_words(torch.device("cpu"))] * 2
    assert hk("train", moved, *SMALL, "--epochs", 2, "--out", tmp_path / "whole").exit_code == 0
    logs = [len((tmp_path / name / "log.jsonl").read_text().splitlines()) for name in ("run", "whole")]
    assert logs == [4, 4]


@pytest.mark.parametrize("option", ["shards", "val"])
def test_a_shard_that_holds_something_else_is_not_trained_on(hk, make_shard, tmp_path, option):
    files = {"shards": make_shard("train.h5", 8), "val": make_shard("val.h5", 4)}
    other, folder = make_shard("other.h5", 8, seed=5), tmp_path / "run"
    command = ["train", files["shards"], *ONE, "--val", files["val"], "--out", folder]
    assert hk(*command).exit_code == 0
    before = held(folder)
    other.replace(files[option])
    result = hk(*command, "--resume")
    assert result.exit_code == 1
    assert f"{folder}: {option} is {files[option]} (" in result.stderr
    assert "which holds something else; give the same files" in result.stderr
    assert held(folder) == before


@pytest.mark.parametrize(("option", "command"), [
    ("source", ["finetune", "--from", "start", "--batch-size", 4, "--epochs", 2]),
    ("weights", ["train", *SMALL, "--epochs", 2, "--weights", "start.pth"]),
])
def test_what_a_run_started_from_is_known_by_what_it_holds(hk, run, trained, here, option, command):
    """A run that is resumed has its weights; another start would make its config a lie."""
    _, shard = run
    shutil.copytree(trained[0], "start")
    state = load_model("start").network.state_dict()
    torch.save(dict(state), "start.pth")
    assert hk(*command, shard, "--out", "tuned").exit_code == 0
    Path("start").rename("renamed")
    Path("start.pth").rename("renamed.pth")
    renamed = [str(word).replace("start", "renamed") for word in command]
    assert hk(*renamed, shard, "--out", "tuned", "--resume").exit_code == 0
    torch.save({name: value + 1 for name, value in state.items()}, "renamed.pth")
    assert hk("train", shard, *SMALL, "--epochs", 1, "--seed", 1, "--out", "renamed", "--overwrite").exit_code == 0
    refused = hk(*renamed, shard, "--out", "tuned", "--resume")
    assert f"tuned: {option} is renamed" in refused.stderr


def test_a_run_has_no_fewer_epochs_than_are_done(hk, run):
    folder, shard = run
    assert hk("train", shard, *SMALL, "--epochs", 3, "--out", folder, "--resume").exit_code == 0
    before = held(folder)
    result = hk("train", shard, *SMALL, "--epochs", 2, "--out", folder, "--resume")
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {folder}: has 3 epochs done, --epochs is 2; give more\n"
    )
    assert held(folder) == before


def test_a_finished_run_that_is_resumed_prints_its_summary_and_keeps_its_seconds(hk, run):
    folder, shard = run
    state = torch.load(folder / "state.pt", weights_only=True)
    state = {name: value for name, value in state.items() if name not in ("format", "version")}
    save_state(folder, {**state, "seconds": 1000.04})
    result = hk("train", shard, *ONE, "--out", folder, "--resume")
    assert result.exit_code == 0, result.stderr
    assert result.records[0]["seconds"] == 1000.0
    assert result.records[0]["epochs"] == 1
    assert hk("train", shard, *SMALL, "--epochs", 2, "--out", folder, "--resume").records[0]["seconds"] >= 1000
    assert len(read_info(folder)["sessions"]) == 2


def test_a_run_says_what_it_was_made_with(run):
    folder, shard = run
    info = json.loads((folder / "run.json").read_text())
    assert info["files"] == {"shards": [{"path": info["files"]["shards"][0]["path"], "sha256": file_digest(shard)[1]}]}
    (session,) = info["sessions"]
    assert session.keys() == {
        "started", "hkmap", "python", "torch", "numpy", "opencv", "platform", "device"
    }
    assert (session["hkmap"], session["torch"]) == (__version__, torch.__version__)


def test_a_shard_without_a_seal_is_known_by_its_records(run, tmp_path):
    _, shard = run
    sealed = ShardReader(shard).digest
    rewrite(shard, lambda file: None)
    assert len(digest := ShardReader(shard).digest) == 64 != sealed
    shutil.copy(shard, tmp_path / "copy.h5")
    rewrite(shard, replace("crc32", np.arange(8, dtype=np.uint32)))
    assert ShardReader(tmp_path / "copy.h5").digest == digest != ShardReader(shard).digest


@pytest.mark.parametrize(("text", "sentence"), [
    ("{", "not a JSON file (JSONDecodeError)"), ("[" * 10**5, "not a JSON file (RecursionError)"),
    ("{}", "lacks files"),
    ('{"files": [], "sessions": []}', "files is a list; expected paths and digests by option"),
    ('{"files": {"shards": [{"path": 1, "sha256": ""}]}, "sessions": []}', "files is a dict; expected paths"),
    ('{"files": {}, "sessions": 1}', "sessions is 1; expected a list"),
])
def test_a_broken_run_json_is_a_sentence(hk, run, text, sentence):
    folder, shard = run
    (folder / "run.json").write_text(text)
    result = hk("train", shard, *ONE, "--out", folder, "--resume")
    assert (result.exit_code, f"{folder / 'run.json'}: {sentence}" in result.stderr) == (1, True), result.stderr


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


# folders that may not be written


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("way", [(), ("--resume",), ("--overwrite",)])
def test_a_folder_that_may_not_be_written_to_is_a_sentence(hk, run, monkeypatch, number, way):
    """Whoever runs the tests, root included."""
    folder, shard = run
    before, opened = held(folder), os.open

    def refusing(path, *rest, **more):
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    result = hk("train", shard, *ONE, "--out", folder, *way)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1, f"Error: {folder}: {os.strerror(number)}; expected a run folder that you may write to"
    )
    assert held(folder) == before


# full disks and names


@pytest.mark.parametrize(("limit", "step", "name"), [
    (900, 3, "log.jsonl"), (9000, 3, "state.pt"), (9000, 4, LAST),
])
def test_a_disk_that_fills_is_a_sentence_and_the_run_is_resumed(hk, run, tmp_path, monkeypatch, limit, step, name):
    """At a step of the second epoch, of two steps; in the first there is nothing to resume."""
    _, shard = run
    whole, command = Training.run_epoch, ["train", shard, *SMALL, "--epochs", 2, *OFTEN, "--out"]

    def run_epoch(self, feed):
        for found in whole(self, feed):
            with files_up_to(limit) if found.step == step else nullcontext():
                yield found

    monkeypatch.setattr(Training, "run_epoch", run_epoch)
    result = hk(*command, tmp_path / "full")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {tmp_path / 'full' / name}: File too large"
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert hk(*command, tmp_path / "full", "--resume").exit_code == 0
    assert hk(*command, tmp_path / "whole").exit_code == 0
    assert changed(weights_of(tmp_path / "full"), weights_of(tmp_path / "whole")) == set()


def test_names_that_are_not_utf8(hk, run, tmp_path):
    folder, shard = run
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.h5")
    shard.rename(odd)
    out = os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcn")
    for command in (["train", *ONE], ["finetune", "--epochs", 1, "--batch-size", 4, "--from", folder]):
        options = [*command, odd, "--out", out, "--val", odd]
        assert hk(*options).exit_code == 0
        config = read_config(Path(out, "config.toml"))
        assert [Path(path).name for path in config["shards"]] == [r"caf\xe9.h5"]
        assert hk(*options, "--resume").exit_code == 0
        for path in Path(out).iterdir():
            path.unlink()


# configs


@pytest.mark.parametrize(("line", "sentence"), [
    ('lr = "x"', "lr is 'x'; expected a number"),
    ("lr = nan", "'--lr': nan is not a finite number"),
    ("epochs = true", "epochs is True; expected a number"),
    ("epochs = 1.5", "epochs is 1.5; expected a number"),
    ("epochs = [1]", "epochs is [1]; expected a number"),
    ('augmentations = "crop"', "augmentations is 'crop'; expected a list of texts"),
    ("augmentations = [1.5]", "augmentations is [1.5]; expected a list of texts"),
    ("arch = true", "arch is True; expected a text"),
    ("device = [1]", "device is [1]; expected a text"),
    ("lr = 1979-05-27", "lr has a date; expected a number, a text, true or false, or a list of such"),
    ("lr = {a = 1}", "lr has a dict; expected a number"),
    ("val = [['x']]", "val has a list; expected a number"),
    ("epochs = " + "1" * 5000, "not a TOML file of options (Exceeds the limit"),
    ("x = " + "[" * 5000, "not a TOML file of options (maximum recursion"),
    ("epochs = ", "not a TOML file of options"),
])
def test_a_wrong_value_of_a_config_is_a_sentence(hk, run, tmp_path, line, sentence):
    _, shard = run
    (tmp_path / "x.toml").write_text(line)
    result = hk("train", shard, "--config", tmp_path / "x.toml", "--out", tmp_path / "no")
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert not (tmp_path / "no").exists()


def test_sides_that_differ_are_kept_and_repeated(hk, run, tmp_path):
    _, shard = run
    options = overridden(ONE, "--image-size", "24x16")
    result = hk("train", shard, *options, "--out", tmp_path / "wide")
    assert result.exit_code == 0, result.stderr
    model = load_model(tmp_path / "wide")
    assert (model.preprocessing.width, model.preprocessing.height) == (24, 16)
    assert read_config(tmp_path / "wide/config.toml")["image_size"] == "24x16"
    again = ["train", "--config", tmp_path / "wide/config.toml", shard, "--out"]
    assert hk(*again, tmp_path / "wide", "--resume").exit_code == 0
    assert hk(*again, tmp_path / "again").exit_code == 0
    square = hk("train", shard, *overridden(ONE, "--image-size", "16x16"), "--out", tmp_path / "square")
    assert square.exit_code == 0
    assert read_config(tmp_path / "square/config.toml")["image_size"] == 16
    assert json.loads(square.stdout)["select"] == "last"


def test_a_former_name_of_a_choice_is_read_and_any_other_value_is_left_alone(tmp_path):
    for line, value in {'"norm"': "l2norm", '"kl"': "kl", '["norm"]': ["norm"]}.items():
        (tmp_path / "x.toml").write_text(f"map_loss = {line}")
        assert read_config(tmp_path / "x.toml") == {"map_loss": value}
