"""`hkmap pack` broken off: killed, stopped, or without room, at any step; and taken up again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import lines

from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter, WriterOptions

Hk = Callable[..., Any]
COUNT = 11
RANDOM = np.random.default_rng(0)
PROGRAM = Path(__file__).with_name("broken_packing.py")
#: A run is broken off at every n-th step; `make soak` tries all.
STRIDE = {"kill": 31, "full": 67, "stop": 73, "limit": 41}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Images and maps below ../; a class that comes late in every shard."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    result = []
    for index in range(COUNT):
        cv2.imwrite(f"../{index}.png", RANDOM.integers(0, 256, (50, 40, 3), dtype=np.uint8))
        np.save(f"../{index}.npy", RANDOM.random((3, 4), dtype=np.float32))
        result.append({"id": str(index), "image": f"{tmp_path}/{index}.png", "map": f"{tmp_path}/{index}.npy",
                       "label": index // 3, "class": f"class {index // 3}"})
    Path("../in.jsonl").write_text(lines(result))
    return result


def digests(folder: Path = Path()) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def broken_runs(mode: str, stride: int, *options: object) -> Iterator[dict[str, Any]]:
    arguments = ["x.h5", "../../in.jsonl", *map(str, options)]
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), mode, str(stride), *arguments], stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    assert process.returncode == 0


def check_broken_runs(mode: str, stride: int, whole: dict[str, str], *options: object) -> None:
    """Whatever a run is broken off by, at any step: nothing half stands under a name, and resumed it is the whole."""
    seen = 0
    for result in broken_runs(mode, stride, *options):
        broken, resumed = result["broken"], result["resumed"]
        final = {name: digest for name, digest in broken["left"].items() if "/" not in name}
        assert final.items() <= whole.items(), result["number"]
        seen += broken["exit"] != 0
        if broken["exit"] != 0 and mode in ("full", "limit"):
            assert re.fullmatch(
                r"Error: x\.h5: (No space left on device|File too large); nothing is left of it, make room\n",
                broken["said"])
        if broken["exit"] != 0 and mode != "kill":
            assert broken["left"] in ({}, whole)
        assert "Traceback" not in broken["said"] + resumed["said"]
        assert resumed["left"] == whole, result["number"]
        assert resumed["exit"] == 0 or "exists already" in resumed["said"]
        assert resumed["exit"] == 0 or final == whole
    assert seen > 2


@pytest.mark.parametrize("options", [["--shard-size", 4], []], ids=["series", "one"])
@pytest.mark.parametrize("mode", ["kill", "full", "stop", "limit"])
def test_a_run_broken_off_at_any_step(
    mode: str, options: list[object], hk: Hk, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert hk("pack", "x.h5", "../in.jsonl", *options).exit_code == 0
    check_broken_runs(mode, STRIDE[mode], digests(), *options)


@pytest.mark.soak
@pytest.mark.parametrize("options", [
    ["--shard-size", 4], [], ["--shard-bytes", "40kB"], ["--store", "pixels", "--size", 30, "--shard-size", 5],
], ids=["series", "one", "bytes", "pixels"])
@pytest.mark.parametrize("mode", ["kill", "full", "stop", "limit"])
def test_a_run_broken_off_at_every_step(
    mode: str, options: list[object], hk: Hk, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert hk("pack", "x.h5", "../in.jsonl", *options).exit_code == 0
    check_broken_runs(mode, 1, digests(), *options)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_at_some_moment(seed: int, hk: Hk, records: list[dict[str, Any]], tmp_path: Path) -> None:
    """From outside, records trickling in; `make soak` does it fifty times."""
    hk("pack", "x.h5", "../in.jsonl", "--shard-size", 4)
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-m", "hkmap", "pack", "x.h5", "--shard-size", "4", "-"]
    with subprocess.Popen(command, cwd=tmp_path / "killed", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(lines(records[: 3 * seed]).encode())
        process.stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.Random(seed).uniform(0, 1.5))
        process.kill()
    assert digests(tmp_path / "killed") == {}
    done = subprocess.run([*command[:-1], "../in.jsonl", "--resume"], cwd=tmp_path / "killed", check=True, timeout=60)
    assert done.returncode == 0
    assert digests(tmp_path / "killed") == digests()


# --- what is taken up -------------------------------------------------------------------------------------------


class BrokenOffError(Exception):
    """What ends a run here, without a bug."""


def broken(records: list[dict[str, Any]], hk: Hk, *options: object, after: int = 9) -> None:
    """Leave what a run does that is broken off: four records a shard, two of them finished."""
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, *options,
              stdin=lines(records[:after]) + '{"error": "the camera broke"}\n')
    assert done.exit_code == 1
    assert "the camera broke" in done.stderr
    assert [path.name for path in sorted(Path(".x.h5.pack").iterdir())] == [
        "journal.json", "lock", "x-00000.h5", "x-00001.h5"]


def test_what_is_finished_is_not_done_again(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 4, stdin=records)
    whole = digests()
    for name in whole:
        Path(name).unlink()
    broken(records, hk)
    before = Path(".x.h5.pack/x-00000.h5").stat().st_mtime_ns
    for index in range(8):
        Path(f"../{index}.png").unlink()      # nobody reads them again
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, "--expect", COUNT, stdin=records)
    assert (done.exit_code, done.stderr) == (0, "")
    assert digests() == whole
    assert not Path(".x.h5.pack").exists()
    assert before <= Path("x-00000.h5").stat().st_mtime_ns
    result, = done.records
    assert {key: result[key] for key in ("records", "maps", "map_size", "classes")} == {
        "records": COUNT, "maps": COUNT, "map_size": [3, 4], "classes": [f"class {label}" for label in range(4)]}
    assert [shard["records"] for shard in result["shards"]] == [4, 4, 3]
    assert [shard["sha256"] in Path(shard["path"]).read_bytes()[:512].decode() for shard in result["shards"]]


def test_a_run_that_is_not_told_to_resume_says_so(hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    done = hk("pack", "x.h5", "--shard-size", 4, stdin=records)
    assert done.exit_code == 1
    sentence = ("Error: x.h5: a run that was broken off has left finished shards in .x.h5.pack; go on with "
                "`hkmap pack --resume`, or begin anew with --overwrite")
    assert sentence in done.stderr
    hk("pack", "other.h5", stdin=records)
    assert sentence in hk("merge", "x.h5", "other.h5").stderr      # merge itself has no --resume
    Path("other.h5").unlink()
    assert len(list(Path(".x.h5.pack").iterdir())) == 4
    assert hk("pack", "x.h5", "--overwrite", stdin=records).exit_code == 0
    assert list(digests()) == ["x.h5"]
    assert not Path(".x.h5.pack").exists()


def test_a_run_with_nothing_to_take_up_begins(hk: Hk, records: list[dict[str, Any]]) -> None:
    assert hk("pack", "x.h5", "--resume", stdin=records).exit_code == 0
    done = hk("pack", "x.h5", "--resume", stdin=records)
    assert done.exit_code == 1
    assert "x.h5: exists already" in done.stderr
    assert hk("pack", "x.h5", "--resume", "--overwrite", stdin=records).exit_code == 0


@pytest.mark.parametrize(("options", "sentence"), [
    (["--shard-size", 5], "--shard-size is 5, in the run that was broken off it was 4; say the same, or begin anew"),
    (["--shard-size", 4, "--shard-bytes", "1MB"], "--shard-bytes is 1000000, in the run .* it was not given"),
    (["--shard-size", 4, "--store", "pixels", "--size", "8x9"], r"--size is \[8, 9\], in the run .* it was not given"),
    (["--shard-size", 4, "--classes", "../classes.txt"], r"--classes is \['class 0', .* it was not given"),
    (["--shard-size", 4, "--append"], "--append is given, in the run .* it was not given"),
])
def test_a_run_with_other_options(options: list[object], sentence: str, hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("../classes.txt").write_text("".join(f"class {label}\n" for label in range(4)))
    broken(records, hk)
    done = hk("pack", "x.h5", "--resume", *options, stdin=records)
    assert done.exit_code == 1
    assert re.search(sentence, done.stderr)
    assert hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records).exit_code == 0


def test_another_version_of_hkmap(hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    journal = json.loads(Path(".x.h5.pack/journal.json").read_text())
    journal["settings"]["the version of hkmap"] = "0.0.1"
    Path(".x.h5.pack/journal.json").write_text(json.dumps(journal))
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records)
    assert "the version of hkmap is 0.1.0, in the run that was broken off it was 0.0.1" in done.stderr


def change(records: list[dict[str, Any]], index: int, **keys: Any) -> list[dict[str, Any]]:
    return [{**record, **keys} if number == index else record for number, record in enumerate(records)]


@pytest.mark.parametrize(("of", "sentence"), [
    (lambda records: change(records, 2, label=3), 'record "2": the run that was broken off did not pack it here; --re'),
    (lambda records: change(records, 2, note="other"), 'record "2": the run that was broken off did not pack it here'),
    (lambda records: [*records[:3], {**records[9], "id": "new"}, *records[3:]], 'record "new": the run that was'),
    (lambda records: records[1:], 'record "1": the run that was broken off did not pack it here'),
    (lambda records: records[:6], "x.h5: the records end after 6, and the run that was broken off had packed more"),
])
@pytest.mark.parametrize("policy", [[], ["--on-error", "skip", "--max-errors", 99]])
def test_other_records(of: Any, sentence: str, policy: list[object], hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, *policy, stdin=of(records))
    assert done.exit_code == 1
    assert re.search(sentence, done.stderr)
    assert len(list(Path(".x.h5.pack").iterdir())) == 4
    assert hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records).exit_code == 0


def test_records_that_were_skipped_are_skipped_again(hk: Hk, records: list[dict[str, Any]]) -> None:
    skip = ("--on-error", "skip", "--max-errors", 9)
    bad = [records[0], {"id": "no image"}, records[1], records[0], {**records[2], "id": "x", "image": "gone.png"},
           {"id": "y", "image": records[3]["image"], "note": "\ud800"}, *records[2:]]
    text = lines(bad[:3]) + "no record\n" + lines(bad[3:])
    unbroken = hk("pack", "x.h5", "--shard-size", 4, *skip, stdin=text)
    whole = digests()
    for name in whole:
        Path(name).unlink()
    broken([*bad], hk, *skip, after=13)
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, *skip, stdin=text)
    assert (done.exit_code, done.stderr) == (0, unbroken.stderr)
    assert done.stderr.count("skipped: ") == 5
    assert digests() == whole


def test_the_library_resumes_too(records: list[dict[str, Any]]) -> None:
    images = [Path(record["image"]).read_bytes() for record in records]
    maps = [np.load(record["map"]) for record in records]

    def run(stop: int, name: str = "x.h5") -> None:
        with ShardWriter(Path(name), shard_size=3, options=WriterOptions(resume=True)) as writer:
            for index, record in enumerate(records):
                if index == stop:
                    raise BrokenOffError
                writer.add(record, images[index], maps[index])

    run(99)
    whole = digests()
    for name in whole:
        Path(name).unlink()
    for stop in (2, 5, 8):
        with pytest.raises(BrokenOffError):
            run(stop)
    assert len(list(Path(".x.h5.pack").glob("*.h5"))) == 2
    run(99)
    assert digests() == whole
    with pytest.raises(BrokenOffError):
        run(1, "y.h5")
    assert digests() == whole
    assert not Path(".y.h5.pack").exists()


def test_a_run_killed_between_two_names_takes_no_more_records(
    hk: Hk, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hkmap.shards.writer.Progress._rename", stopped)
    with pytest.raises(BrokenOffError):
        hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records[:9])
    monkeypatch.undo()
    os.chdir(Path(records[0]["image"]).parent / "start")
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records)
    assert done.exit_code == 1
    assert 'record "9": the run that was broken off did not pack it here' in done.stderr
    assert hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records[:9]).exit_code == 0
    assert len(digests()) == 3


def test_a_change_that_was_broken_off_is_taken_back(
    hk: Hk, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of classes that came late were half written into the first shard."""
    hk("pack", "x.h5", "--shard-size", 4, stdin=records)
    whole = digests()
    for name in whole:
        Path(name).unlink()

    def half_written(path: Path, name: str, value: str) -> str:
        with path.open("r+b") as file:
            file.write(b"x" * 3000)
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        raise BrokenOffError

    monkeypatch.setattr("hkmap.shards.writer.replace_attribute", half_written)
    with pytest.raises(BrokenOffError):
        hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records)
    monkeypatch.undo()
    os.chdir(Path(records[0]["image"]).parent / "start")
    assert Path(".x.h5.pack/undo").exists()
    assert hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records).exit_code == 0
    assert digests() == whole


def stopped(*arguments: object) -> None:
    raise BrokenOffError


def test_names_that_cannot_be_given_are_taken_back(
    hk: Hk, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hk("pack", "x.h5", "--shard-size", 9, stdin=records[:3])
    replace = Path.replace

    def broken_replace(path: Path, target: Path) -> Path:
        if path.name == "x-00001.h5" and target == Path(path.name):
            raise OSError(5, "Input/output error", str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", broken_replace)
    done = hk("pack", "x.h5", "--shard-size", 4, "--overwrite", stdin=records)
    assert (done.exit_code, digests()) == (1, {})
    assert "Input/output error" in done.stderr
    monkeypatch.setattr(Path, "replace", replace)
    assert hk("pack", "x.h5", "--shard-size", 4, "--resume", stdin=records).exit_code == 0
    assert len(digests()) == 3


# --- two at once --------------------------------------------------------------------------------------------------


def test_two_runs_do_not_write_one_shard(hk: Hk, records: list[dict[str, Any]]) -> None:
    with ShardWriter(Path("x.h5")) as writer:
        done = hk("pack", "x.h5", stdin=records)
        assert done.exit_code == 1
        assert "Error: x.h5: another hkmap pack is writing it; wait, or choose a name" in done.stderr
        writer.add({"id": "1", "image": "x.png"}, Path(records[0]["image"]).read_bytes(), None)
    assert len(ShardReader(Path("x.h5"))) == 1


def test_a_file_system_without_locks(
    hk: Hk, records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    done = hk("pack", "x.h5", "-v", stdin=records)
    assert done.exit_code == 0
    assert "x.h5: Function not implemented; so keep other runs away from it yourself" in done.stderr


def test_a_folder_of_somebody_else(hk: Hk, records: list[dict[str, Any]]) -> None:
    Path(".x.h5.pack").mkdir()
    Path(".x.h5.pack/thesis.txt").write_text("dear")
    done = hk("pack", "x.h5", "--overwrite", stdin=records)
    assert done.exit_code == 1
    assert ".x.h5.pack: a folder of somebody else, where hkmap pack would work; move it away" in done.stderr
    assert Path(".x.h5.pack/thesis.txt").read_text() == "dear"


def test_a_lock_that_was_removed_meanwhile(records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before removes its folder between our opening of its lock and our locking of it."""
    flock, first = fcntl.flock, [True]

    def slow(descriptor: int, how: int) -> None:
        if first.pop() if first else False:
            Path(".x.h5.pack/lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with ShardWriter(Path("x.h5")) as writer:
        assert Path(".x.h5.pack/lock").exists()
        writer.add({"id": "1", "image": "x.png"}, Path(records[0]["image"]).read_bytes(), None)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"first": 0}'])
def test_a_journal_that_is_none(text: str, hk: Hk, records: list[dict[str, Any]]) -> None:
    """A folder without a journal holds nothing that could be taken up."""
    broken(records, hk)
    Path(".x.h5.pack/journal.json").write_text(text)
    assert hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records).exit_code == 0
    assert len(digests()) == 3


def test_a_finished_shard_that_is_damaged(hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    os.truncate(".x.h5.pack/x-00001.h5", 30_000)
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records)
    assert done.exit_code == 1
    assert re.search(r"x-00001\.h5: cut short at 30000 of \d+ bytes", done.stderr)


