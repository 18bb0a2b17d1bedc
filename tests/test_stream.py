"""The stream contract, by real pipes where it takes one: what flows, what a failure looks like, how a command ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import lines

import hkmap

MINE = {"mine": {"deep": [1, None, "é"]}, "note": "kept"}
BUBBLES = [{"x": 3, "y": 3, "radius": 2}, {"x": 9, "y": 4, "radius": 2}, {"x": 5, "y": 12, "radius": 3}]
PASS = ("resize", "--size", "3", "--missing", "pass", "--out", "maps")       # a filter that needs nothing of a record
PASSING = "hkmap resize --size 3 --missing pass --out maps"


@pytest.fixture
def photos(here: Path) -> Path:
    """Two classes of two images each."""
    rng = np.random.default_rng(0)
    for name in ("cat/1", "cat/2", "dog/1", "dog/2"):
        path = here / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return here / "photos"


# what flows


def test_keys_that_hkmap_does_not_know_pass_through_every_filter(hk, photos: Path, make_run: Path) -> None:
    np.save("map.npy", np.ones((8, 8), np.float32))
    cv2.imwrite("mask.png", np.ones((16, 16), np.uint8))
    record = {"id": "7", **MINE, "image": "photos/cat/1.png", "size": [16, 16], "map": "map.npy", "bubbles": BUBBLES,
              "masks": {"EX": "mask.png"}, "label": 0}
    for command in (
        ("bubbles2map", "--out", "a"), ("masks2map", "--out", "b"), ("resize", "--size", 3, "--out", "c"),
        ("predict", "--from", make_run), ("predict", "--from", make_run, "--out", "d.h5"),
    ):
        (found,) = hk(*command, stdin=[record]).records
        assert {**found, "map": "map.npy"} == {**record, **{key: found[key] for key in found if key not in record}}
        assert list(found)[: len(record)] == list(record)
    assert {"prediction", "confidence", "attention"} <= set(found)
    assert found["map"] == "map.npy"        # `map` is always the human map
    packed = hk("pack", "one.h5", stdin=[record])
    assert packed.exit_code == 0
    assert hk("unpack", "one.h5").records == [{**record, "image": "one.h5#0", "map": "one.h5#0"}]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained network of two classes."""
    from hkmap.engine.inputs import Preprocessing
    from hkmap.engine.runs import new_model, save_model
    from hkmap.networks.backbone import Architecture

    path = tmp_path_factory.mktemp("run") / "best.pt"
    architecture = Architecture("resnet8+abn", 2, stem="small", width=4, gate="residual")
    save_model(path, new_model(architecture, Preprocessing(16, 16), ("cat", "dog"), 0))
    return path


def test_what_people_write_passes_as_it_is(hk, here: Path) -> None:
    records = [{"id": "Großer Ani \U0001f426", "tab": "\t", "line": "a\nb"}]
    result = hk(*PASS, stdin=records)
    assert result.records == records
    assert "Großer Ani \U0001f426" in result.stdout


def test_records_come_from_a_file_or_from_stdin(hk, here: Path) -> None:
    (here / "in.jsonl").write_text('{"id": "1"}\n\n{"id": "2"}', encoding="utf-8")
    for arguments, stdin in (([*PASS, "in.jsonl"], b""), ([*PASS, "-"], b'{"id": "1"}\n\n{"id": "2"}')):
        assert [record["id"] for record in hk(*arguments, stdin=stdin).records] == ["1", "2"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_filter_answers_each_record_at_once_and_interrupted_it_is_130_and_no_end_of_data(here, jobs: str) -> None:
    """`kill -INT` of one stage: the others would take a mere end of its output for the end of the data."""
    command, pipe = [sys.executable, "-m", "hkmap", *PASS, "--jobs", jobs], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        for number in range(5):
            process.stdin.write(b'{"id": "%d"}\n' % number)
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"id": str(number)}      # while its input is still open
        process.send_signal(signal.SIGINT)
        output, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"interrupted\n")
    assert json.loads(output) == {"error": "interrupted"}


def test_a_filter_into_one_file_holds_its_records_back_until_the_file_is_there(hk, here: Path) -> None:
    np.save("map.npy", np.ones((8, 8), np.float32))
    records = [{"id": str(number), "map": "map.npy"} for number in range(3)]
    result = hk("resize", "--size", 3, "--out", "maps.h5", stdin=[*records, {"id": "3", "map": "gone.npy"}])
    assert result.exit_code == 1
    assert [list(record) for record in result.records] == [["error"]]       # no reference to a file that never came
    assert not (here / "maps.h5").exists()


MEASURED = """
import re, sys
from hkmap.cli import main
import hkmap.files.hdf5, hkmap.stream.references

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = memory("VmRSS")
try:
    main()
except SystemExit as end:
    assert not end.code
print(memory("VmHWM") - before, *{"distributed", "multiprocessing"} & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for the peak of memory")
@pytest.mark.parametrize(("count", "more", "options"), [
    (16_000, {"long": "x" * 10_000}, ["--missing", "pass", "--out", "maps"]),       # 160 MB of records
    (1_000, {"map": "map.npy"}, ["--jobs", "2", "--out", "maps.h5"]),               # 160 MB of maps
])
def test_memory_does_not_grow_with_the_stream_and_nothing_of_dask_is_loaded(here, count, more, options) -> None:
    np.save("map.npy", np.ones((200, 200), np.float32))
    Path("in.jsonl").write_text(lines([{"id": str(number), **more} for number in range(count)]))
    command = [sys.executable, "-c", MEASURED, "resize", "in.jsonl", "--size", "200", *options]
    pipe = subprocess.PIPE
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=pipe, text=True, timeout=120)
    assert int(done.stderr) < 80_000


# a failure


def test_a_failure_is_a_sentence_and_a_last_record_of_its_own(hk, here: Path) -> None:
    result = hk("resize", "--size", 3, "--out", "maps", stdin=[{"id": "7"}])
    assert result.exit_code == 1
    sentence = 'record "7": has no map; expected one; --missing pass lets such records through unchanged'
    assert result.stderr == f"Error: {sentence}\n"
    assert result.records == [{"error": sentence}]


def test_who_reads_a_failure_stops_and_passes_the_first_sentence_on(hk, here: Path) -> None:
    failed = [{"id": "1"}, {"error": "photos/7.jpg: gone"}]
    result = hk(*PASS, stdin=failed)
    assert result.exit_code == 1
    assert result.stderr == "Error: the stage before failed: photos/7.jpg: gone\n"
    assert result.records == failed         # not "the stage before failed: the stage before failed: ..."


def test_who_reads_a_long_failure_says_its_beginning_and_passes_all_of_it_on(hk, here: Path) -> None:
    failed = {"error": "photos/7.jpg: " + "gone " * 100}
    result = hk(*PASS, stdin=[failed])
    assert result.stderr == f"Error: the stage before failed: {failed['error'][:57]}...\n"
    assert result.records == [failed]


@pytest.mark.parametrize("command", [PASS, ("pack", "x.h5"), ("sample", "1")], ids=lambda command: command[0])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(hk, here, monkeypatch, command) -> None:
    monkeypatch.setattr("hkmap.cli._stream._LONGEST", 1 << 17)
    result = hk(*command, stdin=b"\0" * (1 << 20))
    assert result.exit_code == 1
    assert result.stderr == "Error: stdin: a line of over 64 MiB; expected one record per line\n"


def test_a_failure_goes_through_the_whole_pipe(shell, photos: Path) -> None:
    (photos / "dog/1.png").write_bytes((photos / "dog/1.png").read_bytes()[:-30])
    line = "hkmap folder photos | hkmap bubbles2map --missing pass --out m | hkmap pack cut.h5"
    result = shell(line)
    assert result.exit_code == 1
    assert not (photos.parent / "cut.h5").exists()
    np.save("map.npy", np.full((4, 4), 2, np.float32))
    first = json.dumps({"id": "7", "map": "map.npy", "image": "photos/cat/1.png"})
    pipe = f"echo '{first}' | hkmap resize --size 3 --out a | {PASSING} | hkmap pack bad.h5"
    result = shell(f"{pipe}; echo ${{PIPESTATUS[@]}}")
    assert result.stdout.splitlines()[-1] == "0 1 1 1"
    assert result.stderr.count("the stage before failed: map.npy: values span [2, 2], expected [0, 1]") == 2
    assert not (photos.parent / "bad.h5").exists()


@pytest.mark.parametrize("command", ["pack x.h5", "show --out x.png", "resize --missing pass --size 3 --out x.h5"])
def test_a_sink_leaves_nothing_when_nothing_comes_or_the_stage_before_fails(hk, photos: Path, command: str) -> None:
    failed = [{"id": "1", "image": "photos/cat/1.png"}, {"error": "disk gone"}]
    none = "stdin: no records; expected one JSON object per line, as `hkmap folder` prints them"
    for policy in ([], ["--on-error", "skip", "--max-errors", 9]):
        for records, said in ((failed, "the stage before failed: disk gone"), ([], none)):
            result = hk(*command.split(), *policy, stdin=records)
            assert result.exit_code == 1
            assert f"Error: {said}" in result.stderr
            assert result.records == [{"error": said.removeprefix("the stage before failed: ")}]
            assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_a_person_gets_no_error_record(terminal) -> None:
    code, shown, said = terminal(*PASS, stream="stdout", stdin=b'{"id": "1"}\nbroken\n')
    assert (code, shown) == (1, '{"id": "1"}\r\n')
    assert said.startswith("Error: stdin line 2: not a JSON object")


@pytest.mark.parametrize("arguments", [["resize", "--size", "3", "--out", "m"], ["pack", "x.h5"]], ids=" ".join)
def test_a_terminal_is_nobodys_stream(terminal, here: Path, arguments: list[str]) -> None:
    code, shown, said = terminal(*arguments, stream="stdout", stdin=None)
    assert (code, shown) == (2, "")
    assert "Nothing to read: pipe records in, or name a file of records." in said
    assert list(here.iterdir()) == []


def test_a_bug_keeps_its_traceback_and_poisons_the_pipe(shell, here: Path) -> None:
    (here / "sitecustomize.py").write_text(
        "import hkmap.records\n"
        "def passed_on(*_): raise ZeroDivisionError('a bug in caf\\udce9')\n"
        "hkmap.records.passed_on = passed_on\n"
    )
    pipe = f"echo '{{\"id\": \"1\"}}' | {PASSING} | hkmap pack x.h5"
    result = shell(f"{pipe}; echo ${{PIPESTATUS[@]}}", PYTHONPATH=str(here))
    assert result.stdout.splitlines()[-1] == "0 1 1"
    assert "Traceback (most recent call last)" in result.stderr
    assert "Error: the stage before failed: ZeroDivisionError: a bug in caf\\udce9" in result.stderr
    assert not (here / "x.h5").exists()


def test_what_the_system_refuses_is_a_sentence(hk, here: Path) -> None:
    (here / "file").write_text("in the way")
    np.save("map.npy", np.ones((8, 8), np.float32))
    record = {"id": "7", "map": "map.npy"}
    below = hk("resize", "--size", 3, "--out", "file/maps", stdin=[record])
    assert below.exit_code == 1
    assert below.stderr == "Error: file/maps: Not a directory; expected a folder on the way to it\n"


def test_a_full_stdout_is_a_sentence(shell, photos: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    result = shell("hkmap folder photos > /dev/full")
    assert (result.exit_code, result.stderr) == (1, "Error: stdout: No space left on device\n")


# how a command ends


@pytest.mark.parametrize("reader", ["head -1", "true", "head -c 1 > /dev/null"])
def test_a_closed_pipe_is_quiet(shell, here: Path, reader: str) -> None:
    (here / "in.jsonl").write_text('{"id": "%s"}\n' % ("x" * 1000) * 5000)
    result = shell(f"{PASSING} --jobs 2 in.jsonl | {PASSING} | {reader}; echo ${{PIPESTATUS[@]}}")
    assert result.stdout.splitlines()[-1] == "0 0 0"
    assert result.stderr == ""


def test_a_failure_into_a_closed_pipe_says_its_sentence_alone(shell, here: Path) -> None:
    result = shell(f"{PASSING} <<< broken | true")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: stdin line 1: not a JSON object")


# bad records


BAD = b'{"id": "1"}\nbroken\n{"id": "2"}\n{"id": "3", "map": "gone.npy"}\n{"id": "4"}\n'


@pytest.mark.parametrize(("options", "exit_code", "said"), [
    ([], 1, "Error: 2 skipped, --max-errors allows 0"),
    (["--max-errors", 1], 1, "Error: 2 skipped, --max-errors allows 1"),
    (["--max-errors", 2], 0, "warning: 2 skipped"),
    (["--max-errors", 99], 0, "warning: 2 skipped"),
])
def test_skipped_records_are_named_counted_and_limited(hk, here, options, exit_code, said) -> None:
    result = hk(*PASS, "--on-error", "skip", *options, stdin=BAD)
    assert [record["id"] for record in result.records] == ["1", "2", "4"]
    first, second, last = result.stderr.splitlines()
    assert first.startswith("warning: skipped: stdin line 2: not a JSON object")
    assert second.startswith("warning: skipped: gone.npy: ")
    assert last == said
    assert result.exit_code == exit_code


def test_a_bad_record_stops_by_default(hk, here: Path) -> None:
    result = hk(*PASS, "--max-errors", 9, stdin=BAD)
    assert result.exit_code == 1
    assert [list(record) for record in result.records] == [["id"], ["error"]]


# talk


def test_quiet_and_verbose(hk, here: Path) -> None:
    skip = (*PASS, "--on-error", "skip", "--max-errors", 9)
    assert hk(*skip, "-q", stdin=BAD).stderr == ""
    assert hk(*skip, stdin=BAD).stderr.count("warning: ") == 3      # the level of the call before is gone
    assert hk(*skip, "-v", stdin=BAD).stderr.count("warning: ") == 3
    assert hk(*skip, "-vv", stdin=BAD).exit_code == 0
    assert hk(*PASS, "--quiet", stdin=BAD).stderr.startswith("Error: stdin line 2")       # errors are no talk


def test_progress_is_shown_on_a_terminal_and_where_nobody_watches_there_is_none(hk, terminal, photos: Path) -> None:
    records = hk("folder", "photos").stdout
    colourless = {"TERM": "xterm", "NO_COLOR": "1"}
    code, shown, printed = terminal("pack", "x.h5", stream="stderr", stdin=records.encode(), **colourless)
    assert (code, json.loads(printed)["records"]) == (0, 4)      # stdout is data all the same
    assert "packing" in shown
    assert "\x1b[3" not in shown
    assert hk("pack", "y.h5", stdin=records).stderr == ""


def test_variables_stand_for_options(hk, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("map.npy", np.ones((8, 8), np.float32))
    record = {"id": "7", "map": "map.npy"}
    monkeypatch.setenv("HKMAP_RESIZE_SIZE", "7")
    monkeypatch.setenv("HKMAP_RESIZE_OUT", "from-variable")
    monkeypatch.setenv("HKMAP_RESIZE_FORMAT", "png")
    assert hk("resize", stdin=[record]).records == [{**record, "map": "from-variable/7.png"}]
    assert cv2.imread("from-variable/7.png", cv2.IMREAD_UNCHANGED).shape == (7, 7)
    line = hk("resize", "--size", 5, "--format", "npy", "--out", "m", stdin=[record])       # the line comes first
    assert np.load(line.records[0]["map"]).shape == (5, 5)
    monkeypatch.setenv("HKMAP_RESIZE_ON_ERROR", "skip")
    monkeypatch.setenv("HKMAP_RESIZE_MAX_ERRORS", "9")
    monkeypatch.setenv("HKMAP_RESIZE_QUIET", "1")
    assert (hk("resize", stdin=b"broken\n").exit_code, hk("resize", stdin=b"broken\n").stderr) == (0, "")
    monkeypatch.setenv("HKMAP_RESIZE_SIZE", "-7")
    assert hk("resize", stdin=[record]).exit_code == 2


def test_the_version(hk) -> None:
    assert hk("--version").stdout == f"hkmap, version {hkmap.__version__}\n"


ORDER = ["cub", "annotations", "join", "bubbles2map", "resize", "pack", "unpack", "train", "finetune", "eval", "show"]


def test_help_of_nothing_names_the_commands_in_the_order_of_a_pipeline(hk) -> None:
    listing = hk("--help").stdout.partition("Sources:\n")[2]
    named = [line.split()[0] for line in listing.splitlines() if line.startswith("  ")]
    assert [name for name in named if name in ORDER] == ORDER
    assert hk("-h").stdout == hk("--help").stdout


# outputs


@pytest.mark.parametrize(("command", "out"), [
    ("resize --size 3 --out maps", "maps/7.npy"), ("resize --size 3 --out maps.h5", "maps.h5"),
    ("resize --size 3 --out maps --format png", "maps/7.png"), ("crop --letterbox 1 --out v", "v/images/7.png"),
    ("bubbles2map --out maps", "maps/7.npy"),
    ("masks2map --out maps", "maps/7.npy"), ("pack x.h5", "x.h5"), ("pack x.h5 --shard-size 1", "x-00000.h5"),
    ("show --out x.png", "x.png"), ("unpack one.h5 --out files", "files/images/7.png"),
    ("unpack one.h5 --out files", "files/maps/7.npy"),
])
def test_nothing_existing_is_overwritten_unless_told(hk, photos: Path, command: str, out: str) -> None:
    np.save("map.npy", np.ones((8, 8), np.float32))
    cv2.imwrite("mask.png", np.ones((16, 16), np.uint8))
    record = {"id": "7", "image": "photos/cat/1.png", "size": [16, 16], "map": "map.npy", "bubbles": BUBBLES,
              "masks": {"EX": "mask.png"}}
    assert hk("pack", "one.h5", stdin=[record]).exit_code == 0
    (photos.parent / out).parent.mkdir(parents=True, exist_ok=True)
    (photos.parent / out).write_text("precious")
    refused = hk(*command.split(), stdin=[record])
    assert refused.exit_code == 1
    assert f"{out}: exists already; choose another name" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert (photos.parent / out).read_text() == "precious"
    assert hk(*command.split(), "--overwrite", stdin=[record]).exit_code == 0
    assert (photos.parent / out).read_bytes() != b"precious"
    assert not [path for path in photos.parent.rglob("*") if path.name.endswith(".part")]
