"""`hkmap pack` broken off: killed, stopped, or without room, at any step; and taken up again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
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
STRIDE = {"kill": 29, "full": 31, "stop": 37, "limit": 13}


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
        yield from map(json.loads, process.stdout)
    assert process.returncode == 0


def check_broken_runs(mode: str, stride: int, whole: dict[str, str], *options: object) -> None:
    """Whatever a run is broken off by, at any step: nothing half stands under a name, and resumed it is the whole."""
    seen = 0
    for result in broken_runs(mode, stride, *options):
        broken, resumed = result["broken"], result["resumed"]
        assert final(broken["left"]).items() <= whole.items(), result["number"]
        if broken["exit"] != 0:
            seen += 1
            check_what_is_left(mode, broken, whole, resumable="--resume" in options)
        assert "Traceback" not in broken["said"] + resumed["said"]
        assert (resumed["exit"], resumed["left"]) == (0, whole), result["number"]
    assert seen > 2


def check_what_is_left(mode: str, broken: dict[str, Any], whole: dict[str, str], *, resumable: bool) -> None:
    left = "finished shards wait for --resume" if resumable else "nothing is left of it"
    if mode in ("full", "limit"):
        assert re.fullmatch(
            rf"Error: x\.h5: (No space left on device|File too large); {left}, make room\n", broken["said"])
    if mode != "kill":      # which leaves what it was writing
        assert broken["left"].keys() - whole.keys() <= {".x.h5.lock"}
        assert resumable or final(broken["left"]) in ({}, whole)


def final(left: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in left.items() if not name.startswith(".")}


SERIES, ONE, RESUMED = "--shard-size 4", "", "--shard-size 4 --resume"
SOME = [("kill", SERIES), ("kill", ONE), ("full", SERIES), ("full", RESUMED), ("stop", SERIES), ("limit", ONE)]
ALL = product(STRIDE, [SERIES, ONE, RESUMED, "--shard-bytes 40kB", "--store pixels --size 30 --shard-size 5"])


@pytest.mark.parametrize(("mode", "options", "stride"), [
    *((mode, options, STRIDE[mode]) for mode, options in SOME),
    *(pytest.param(mode, options, 1, marks=pytest.mark.soak) for mode, options in ALL),
])
def test_a_run_broken_off_at_any_step(mode: str, options: str, stride: int, hk, records, tmp_path) -> None:
    assert hk("pack", "x.h5", "../in.jsonl", *options.split()).exit_code == 0
    check_broken_runs(mode, stride, digests(), *options.split())


# --- what is taken up -------------------------------------------------------------------------------------------


def broken(records: list[dict[str, Any]], hk: Hk, *options: object, after: int = 9) -> None:
    """Leave what a run does that is broken off: four records a shard, two of them finished."""
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, *options,
              stdin=lines(records[:after]) + '{"error": "the camera broke"}\n')
    assert done.exit_code == 1
    assert "the camera broke" in done.stderr
    assert sorted(digests()) == ["x-00000.h5", "x-00001.h5"]


@pytest.fixture
def whole(hk: Hk, records: list[dict[str, Any]]) -> dict[str, str]:
    """What a run leaves that nothing happened to, which is gone again."""
    hk("pack", "x.h5", "--shard-size", 4, stdin=records)
    found = digests()
    for name in found:
        Path(name).unlink()
    return found


def test_what_is_finished_is_not_done_again(hk: Hk, records: list[dict[str, Any]], whole: dict[str, str]) -> None:
    broken(records, hk)
    before = Path("x-00000.h5").stat()
    for index in range(8):
        Path(f"../{index}.png").unlink()      # nobody reads them again
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, "--expect", COUNT, stdin=records)
    assert (done.exit_code, done.stderr) == (0, "")
    assert digests() == whole
    assert Path("x-00000.h5").stat() == before
    result, = done.records
    assert {key: result[key] for key in ("records", "maps", "map_size", "classes")} == {
        "records": COUNT, "maps": COUNT, "map_size": [3, 4], "classes": [f"class {label}" for label in range(4)]}
    assert [shard["records"] for shard in result["shards"]] == [4, 4, 3]
    assert [shard["sha256"] in Path(shard["path"]).read_bytes()[:512].decode() for shard in result["shards"]]


def test_a_run_that_is_not_told_to_resume_says_so(hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    before = digests()
    done = hk("pack", "x.h5", "--shard-size", 4, stdin=records)
    assert done.exit_code == 1
    assert ("Error: x-00000.h5: exists already; choose another name, replace it with --overwrite, or go on after it "
            "with `hkmap pack --resume`") in done.stderr
    assert digests() == before
    assert hk("pack", "x.h5", "--shard-size", 9, "--overwrite", stdin=records).exit_code == 0
    assert [len(ShardReader(Path(name))) for name in sorted(digests())] == [9, 2]


def test_a_run_with_nothing_to_take_up_begins_and_one_that_is_whole_ends(hk, records) -> None:
    assert hk("pack", "x.h5", "--resume", stdin=records).exit_code == 0
    before = digests()
    assert hk("pack", "x.h5", "--resume", stdin=records).exit_code == 0
    assert digests() == before
    done = hk("pack", "x.h5", "--resume", stdin=[*records, {**records[0], "id": "more"}])
    assert done.exit_code == 1
    assert "x.h5: is whole, with 11 records, and more come; choose another name, or" in done.stderr
    assert digests() == before


@pytest.mark.parametrize(("options", "sentence"), [
    (["--shard-size", 5], "x-00000.h5: has 4 records, and --shard-size is 5; --resume needs the same options"),
    (["--shard-size", 3], "x-00000.h5: has 4 records, and --shard-size is 3"),
    (["--shard-size", 4, "--store", "pixels", "--size", 9], "holds image files, and pixels of 9x9 are to be added"),
    (["--shard-size", 4, "--classes", "../classes.txt"], 'label 1 is class "class 1", but it was "another" before'),
])
def test_a_run_with_other_options(options: list[object], sentence: str, hk: Hk, records: list[dict[str, Any]]) -> None:
    Path("../classes.txt").write_text("class 0\nanother\nclass 2\nclass 3\n")
    broken(records, hk)
    before = digests()
    done = hk("pack", "x.h5", "--resume", *options, stdin=records)
    assert (done.exit_code, sentence in done.stderr) == (1, True), done.stderr
    assert digests() == before


def change(records: list[dict[str, Any]], index: int, **keys: Any) -> list[dict[str, Any]]:
    return [{**record, **keys} if number == index else record for number, record in enumerate(records)]


@pytest.mark.parametrize(("of", "sentence"), [
    (lambda records: change(records, 2, label=3, **{"class": "class 3"}), 'record "2": the shards that are there hold'),
    (lambda records: change(records, 2, note="other"), 'record "2": the shards that are there hold another record in'),
    (lambda records: [*records[:3], {**records[9], "id": "new"}, *records[3:]], 'record "new": the shards that are'),
    (lambda records: records[1:], 'record "1": the shards that are there hold another record in its place'),
    (lambda records: records[:6], "x.h5: the records end after 6, and the shards that are there hold more; --resume"),
])
@pytest.mark.parametrize("policy", [[], ["--on-error", "skip", "--max-errors", 99]])
def test_other_records(of: Any, sentence: str, policy: list[object], hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    before = digests()
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, *policy, stdin=of(records))
    assert (done.exit_code, sentence in done.stderr) == (1, True), done.stderr
    assert digests() == before


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


def test_the_library_resumes_too(hk: Hk, records: list[dict[str, Any]], whole: dict[str, str]) -> None:
    def left_after(count: int) -> dict[str, str]:
        options = WriterOptions(resume=True)
        with suppress(KeyboardInterrupt), ShardWriter(Path("x.h5"), shard_size=4, options=options) as writer:
            for record in records[:count]:
                writer.add(record, Path(record["image"]).read_bytes(), np.load(record["map"]))
            if count < COUNT:
                raise KeyboardInterrupt
        return digests()

    assert [sorted(left_after(count)) for count in (2, 5, 9)] == [[], ["x-00000.h5"], ["x-00000.h5", "x-00001.h5"]]
    assert left_after(COUNT) == whole


def test_a_former_series_stays_until_all_is_well(hk: Hk, records: list[dict[str, Any]]) -> None:
    hk("pack", "x.h5", "--shard-size", 2, stdin=records[:6])
    before = digests()
    done = hk("pack", "x.h5", "--shard-size", 4, "--overwrite", stdin=lines(records[:9]) + '{"error": "broken"}\n')
    assert (done.exit_code, digests()) == (1, before)
    assert hk("pack", "x.h5", "--shard-size", 4, "--overwrite", stdin=records).exit_code == 0
    assert [len(ShardReader(Path(name))) for name in sorted(digests())] == [4, 4, 3]


def test_what_killed_runs_have_left_goes_with_the_next(hk: Hk, records: list[dict[str, Any]]) -> None:
    mine = [".x.h5.lock", f".x.h5.{'0' * 16}.part", f".x-00007.h5.{'a' * 16}.part"]
    others = [f".x-y.h5.{'0' * 16}.part", ".x.h5.part", "x-1.h5", ".xx.h5.lock"]
    for name in (*mine, *others):
        Path(name).write_text("half")
    assert hk("pack", "x.h5", "--shard-size", 4, stdin=records).exit_code == 0
    assert sorted(digests()) == sorted([*others, "x-00000.h5", "x-00001.h5", "x-00002.h5"])


def test_a_finished_shard_that_is_damaged(hk: Hk, records: list[dict[str, Any]]) -> None:
    broken(records, hk)
    os.truncate("x-00001.h5", 9000)
    done = hk("pack", "x.h5", "--resume", "--shard-size", 4, stdin=records)
    assert done.exit_code == 1
    assert "x-00001.h5: cut short at 9000 bytes" in done.stderr


# --- two at once --------------------------------------------------------------------------------------------------


def test_two_runs_do_not_write_one_shard(hk: Hk, records: list[dict[str, Any]]) -> None:
    with ShardWriter(Path("x.h5")) as writer:
        done = hk("pack", "x.h5", stdin=records)
        assert done.exit_code == 1
        assert "Error: x.h5: another run is writing it; wait for its end, or choose another name" in done.stderr
        writer.add({"id": "1", "image": "x.png"}, Path(records[0]["image"]).read_bytes(), None)
    assert len(ShardReader(Path("x.h5"))) == 1


def test_a_file_system_without_locks(hk, records, monkeypatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    done = hk("pack", "x.h5", "-v", stdin=records)
    assert done.exit_code == 0
    assert "x.h5: Function not implemented; so keep other runs away from it yourself" in done.stderr


def test_a_lock_that_was_removed_meanwhile(records: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before removes its lock between our opening of it and our locking of it."""
    flock, first = fcntl.flock, [True]

    def slow(descriptor: int, how: int) -> None:
        if first.pop() if first else False:
            Path(".x.h5.lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with ShardWriter(Path("x.h5")) as writer:
        assert Path(".x.h5.lock").exists()
        writer.add({"id": "1", "image": "x.png"}, Path(records[0]["image"]).read_bytes(), None)
