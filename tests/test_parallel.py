"""Several threads, or a cluster, do what one thread does: the same bytes, in order; streams may be endless or break."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import lines
from threadpoolctl import threadpool_info, threadpool_limits

import hkmap
import hkmap.cli.resize
from hkmap.cli._stream import Lines
from hkmap.cli.main import hkmap as group
from hkmap.errors import HkmapError, RecordError, WorkerError
from hkmap.parallel import cluster as clusters
from hkmap.parallel.cluster import Workers, open_pool
from hkmap.parallel.threads import Done, Pool, cores, machine_memory, thread_pool, threads, work

Hk = Callable[..., Any]
PASSING = ("resize", "--size", "3", "--missing", "pass", "--out", "maps", "--jobs", "2")


# what the workers are asked to do: a function of a module, which pickle can name


def halved(number: int) -> float:
    if number < 0:
        raise RecordError(f"{number}: below 0")
    if number == 13:
        raise OSError(28, "No space left on device", "thirteen")
    return number / 2


# a pool, by a stand-in whose tasks are done when the test says so


class Bench:
    """Takes tasks as a pool does; they are done when they are waited for, or at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.tasks: list[Future[Done]] = []
        self.sizes: list[int] = []
        self._at_once = at_once

    def submit(self, function: Callable[[Any], Any], items: list[Any]) -> Any:
        bench = self

        class Task(Future[Done]):
            def result(self, timeout: float | None = None) -> Done:
                if not self.done():
                    self.set_result(work(function, items))
                return super().result(timeout)

        task = Task()
        bench.sizes.append(len(items))
        if self._at_once:
            task.result()
        bench.tasks.append(task)
        return task


def plain(outcomes: Iterator[Any]) -> list[Any]:
    return [str(item) if isinstance(item, HkmapError) else item for item in outcomes]


def test_outcomes_come_in_order_and_each_error_in_its_place() -> None:
    items = [4, RecordError("line 2 is none"), -1, 6, *range(100, 300)]
    found = plain(Pool(3, Bench().submit).attempts(halved, items))
    assert found == [2, "line 2 is none", "-1: below 0", 3, *(number / 2 for number in range(100, 300))]


def test_what_is_no_fault_of_a_record_is_raised_behind_all_before_it() -> None:
    outcomes = Pool(2, Bench().submit).attempts(halved, [2, 4, 13, 6])
    assert [next(outcomes), next(outcomes)] == [1, 2]
    with pytest.raises(OSError, match="thirteen") as caught:
        next(outcomes)
    assert "in halved" in "".join(traceback.format_exception(caught.value))


def test_a_stream_that_breaks_breaks_behind_all_before_it() -> None:
    def breaking() -> Iterator[int]:
        yield from range(20)
        raise RecordError("the stage before failed")

    outcomes = Pool(2, Bench().submit).attempts(abs, breaking())
    assert list(itertools.islice(outcomes, 20)) == list(range(20))
    with pytest.raises(RecordError, match="the stage before failed"):
        next(outcomes)


def test_where_a_thread_pool_ends_the_system_has_ended_its_threads() -> None:
    """A fork would otherwise copy the lock that OpenCV holds meanwhile: without the wait, one round in 20 finds one."""

    def met(together: threading.Barrier) -> int:
        together.wait()
        return threading.get_native_id()

    for _ in range(300):
        with thread_pool(4) as pool:
            numbers = set(pool.map(met, [threading.Barrier(4)] * 4))
        assert len(numbers) == 4
        assert not [number for number in numbers if Path(f"/proc/self/task/{number}").exists()]


def test_a_chunk_holds_more_of_what_is_done_sooner() -> None:
    bench = Bench()
    assert len(list(Pool(1, bench.submit).attempts(abs, range(100)))) == 100
    assert bench.sizes[0] == 1
    assert max(bench.sizes) == 16


def test_a_chunk_that_is_not_full_waits_only_while_the_workers_are_busy() -> None:
    waiting = deque([True] * 2 + [False])      # three items are there, then nothing for a while

    def ready() -> bool:
        return waiting.popleft() if len(waiting) > 1 else waiting[0]

    bench = Bench()
    read = []
    items = (read.append(item) or item for item in itertools.count())
    outcomes = Pool(1, bench.submit).attempts(abs, items, ready)
    assert [next(outcomes) for _ in range(3)] == [0, 1, 2]
    assert read == [0, 1, 2]                    # all is done and passed on before it waits for another item
    assert next(outcomes) == 3


# the lines of a stream


@pytest.mark.parametrize("text", [b"", b"a\nb\n", b"a\n\nb", b"\n", b"x" * 200_000 + b"\ny", b"a\r\nb\r\n"])
def test_lines_are_those_of_the_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "in").write_bytes(text)
    with (tmp_path / "in").open("rb") as first, (tmp_path / "in").open("rb") as second:
        assert list(Lines(first)) == [line.removesuffix(b"\n") for line in second]


def test_lines_know_whether_one_is_there() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb", buffering=0) as into:
        found = Lines(stream)
        assert not found.ready()
        into.write(b"a\nb\n")
        assert found.ready()
        assert next(found) == b"a"
        assert found.ready()
        assert next(found) == b"b"
        assert not found.ready()
        into.close()
        assert found.ready()        # the end is there
        assert list(found) == []


# threads


def test_threads_are_as_many_as_asked_for_and_work_at_the_same_time() -> None:
    met = threading.Barrier(3)          # broken unless three wait at once

    def meet(number: int) -> int:
        met.wait(60)
        return number

    with threads(3) as pool:
        assert list(pool.attempts(meet, range(9))) == list(range(9))      # the first chunks are of one item


def test_real_threads_read_an_endless_stream_only_so_far_ahead() -> None:
    read: list[int] = []
    endless = (read.append(number) or number for number in itertools.count())
    with open_pool(Workers(2), reads_files=False) as pool:
        assert list(itertools.islice(pool.attempts(abs, endless), 100)) == list(range(100))
    assert len(read) <= 100 + 2 * 3 * 16


def test_minus_1_is_one_thread_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 3):
        monkeypatch.setattr(clusters, "cores", lambda count=count: count)
        with open_pool(Workers(-1), reads_files=False) as pool:
            assert (1 if pool is None else pool.jobs) == count
    assert 1 <= cores() <= (os.cpu_count() or 1)
    assert machine_memory() > 2**28


@pytest.mark.parametrize("jobs", [1, 2])
def test_matrix_products_take_one_thread_each(jobs: int) -> None:
    def blas(_: int = 0) -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        assert blas() == {2}
        with open_pool(Workers(jobs), reads_files=False) as pool:
            found = [blas()] if pool is None else list(pool.attempts(blas, range(9)))
            assert all(counts == {1} for counts in found)
        assert blas() == {2}


# the commands


def stream_of(count: int, kind: str) -> list[dict[str, Any]]:
    """Records with all that a filter may want; draws the files that they name."""
    rng = np.random.default_rng(7)
    Path("in").mkdir(exist_ok=True)
    records = []
    for number in range(count):
        places = rng.uniform(0, 40, (5, 2)).round(1).tolist()
        record: dict[str, Any] = {"id": f"ä/{number}", "size": [40, 30], "mine": {"deep": [1, "é"]}}
        if kind == "bubbles":
            record["bubbles"] = [
                {"x": x, "y": y, "radius": 4, "user": str(user % 2)} for user, (x, y) in enumerate(places)
            ]
        elif kind == "points":
            record["points"] = [{"x": x, "y": y, "weight": 1 + y} for x, y in places]
        elif kind == "boxes":
            record["boxes"] = [{"x": x, "y": y, "width": 7, "height": 5, "label": "head"} for x, y in places]
        else:
            mask, values = f"in/{number}.png", f"in/{number}.npy"
            cv2.imwrite(mask, (rng.random((30, 40)) < 0.1).astype(np.uint8))
            np.save(values, rng.random((20, 20), dtype=np.float32))
            record |= {"masks": {"EX": mask}, "unknown": {"void": mask}, "map": values, "annotator_maps": {"3": values}}
        records.append(record)
    return records


COMMANDS = [
    ("bubbles", ("bubbles2map", "--size", 24)),
    ("bubbles", ("bubbles2map", "--size", 24, "--per-annotator", "--bandwidth", "radius", "--equal-users")),
    ("points", ("bubbles2map", "--size", 24, "--bandwidth", "cv", "--format", "png")),
    ("boxes", ("boxes2map", "--size", 24, "--label", "head=0.5", "--edge", "soft")),
    ("masks", ("masks2map", "--size", 24, "--lesion", "EX", "--pooling", "max")),
    ("masks", ("resize", "--size", 7, "--normalise", "max")),
    ("masks", ("certainty",)),
]


def product(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in ([Path(out)] if out.endswith(".h5") else Path(out).iterdir())}


@pytest.mark.parametrize("out", ["maps", "maps.h5"])
@pytest.mark.parametrize(("kind", "command"), COMMANDS, ids=lambda value: " ".join(map(str, value[:3])))
def test_several_threads_give_the_bytes_of_one(hk, here, kind: str, command: tuple[object, ...], out: str) -> None:
    records = stream_of(20, kind)
    alone = hk(*command, "--out", out, stdin=records)
    maps = product(out)
    assert alone.exit_code == 0
    assert len(alone.records) == 20
    for jobs in (1, 2, 4):
        again = hk(*command, "--out", out, "--overwrite", "--backend", "threads", "--jobs", jobs, stdin=records)
        assert again == alone
        assert product(out) == maps


def test_the_number_of_cores_changes_no_byte(hk: Hk, here: Path) -> None:
    """Two threads in a large matrix product give other last digits than one."""
    places = np.random.default_rng(0).uniform(0, 40, (1000, 2)).tolist()
    bubbles = [{"x": x, "y": y, "radius": 1 + number % 7} for number, (x, y) in enumerate(places)]
    records = [{"id": str(number), "size": [40, 40], "bubbles": bubbles[number:]} for number in range(2)]
    for blas, jobs in ((2, 1), (1, 1), (2, 2)):
        with threadpool_limits(blas, user_api="blas"):
            hk("bubbles2map", "--bandwidth", "radius", "--jobs", jobs, "--out", f"m{blas}{jobs}", stdin=records)
    assert product("m21") == product("m11") == product("m22")


def bad_stream() -> bytes:
    """Good records, between them lines that are none, maps that are gone, maps that are none, an id that came."""
    np.save("map.npy", np.ones((8, 8), np.float32))
    np.save("two.npy", np.full((8, 8), 2, np.float32))
    text = []
    for number in range(40):
        text.append(json.dumps({"id": str(number), "map": "map.npy"}))
        if number % 9 == 4:
            text += ["broken", json.dumps({"id": "gone", "map": f"gone{number}.npy"})]
        if number % 9 == 6:
            text += [json.dumps({"id": f"two{number}", "map": "two.npy"}), json.dumps({"id": "5", "map": "map.npy"})]
    return "\n".join(text).encode()


@pytest.mark.parametrize(("policy", "skipped"), [
    (("--on-error", "skip"), 0), (("--on-error", "skip", "--max-errors", 99), 0),
    (("--on-error", "stop"), 0), (("--on-error", "stop"), 6), (("--on-error", "stop"), 7),
])
def test_errors_belong_to_their_records_in_the_order_of_the_stream(hk, here, policy, skipped) -> None:
    text = b"\n".join(bad_stream().splitlines()[skipped:])
    command = ("resize", "--size", 3, *policy)
    alone = hk(*command, "--out", "a", stdin=text)
    together = hk(*command, "--out", "a", "--overwrite", "--jobs", 2, stdin=text)
    assert together == alone
    assert alone.exit_code == (0 if 99 in policy else 1)
    if "skip" in policy:
        assert alone.stderr.count("warning: skipped: ") == 16


@pytest.mark.parametrize(("end", "said"), [
    (b'{"error": "disk gone"}', "the stage before failed: disk gone"),
    (b'{"error": "disk gone"}\n{"id": "more"}', "the stage before failed: disk gone"),
    (b"", None),
])
def test_a_stage_before_that_fails_is_heard_behind_its_records(hk, here, end: bytes, said: str | None) -> None:
    text = lines([{"id": str(number)} for number in range(30)]).encode() + end
    for policy in ([], ["--on-error", "skip", "--max-errors", 9]):
        result = hk(*PASSING, *policy, stdin=text)
        assert [record.get("id") for record in result.records[:30]] == [str(number) for number in range(30)]
        assert result.records[30:] == ([{"error": "disk gone"}] if said else [])
        assert (result.exit_code, result.stderr) == ((1, f"Error: {said}\n") if said else (0, ""))
    empty = hk(*PASSING, stdin=b"\n")
    assert empty.exit_code == 1
    assert empty.stderr.startswith("Error: stdin: no records; expected one JSON object per line")


def test_a_chosen_name_that_never_came_is_an_error_at_the_end(hk: Hk, here: Path) -> None:
    records = stream_of(20, "boxes")
    for jobs in (1, 2):
        command = ("boxes2map", "--label", "beak", "--label", "head", "--out", f"m{jobs}", "--jobs", jobs)
        result = hk(*command, stdin=records)
        assert result.exit_code == 1
        assert len(result.records) == 21
        assert result.stderr == "Error: --label beak: no record has this name; the names are head\n"


def test_a_bug_in_a_worker_keeps_its_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(hkmap.cli.resize, "passed_on", buggy)
    result = CliRunner().invoke(group, list(PASSING), input='{"id": "1"}')
    assert "in buggy" in "".join(traceback.format_exception(result.exception))
    assert json.loads(result.stdout) == {"error": "ZeroDivisionError: a bug"}


# a Dask cluster


BOOT = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two worker processes, in another folder than any test."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "boot.py").write_text(BOOT)
    process = subprocess.Popen(
        [sys.executable, "boot.py"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
    )
    try:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def on(cluster: str) -> tuple[str, ...]:
    return ("--backend", "dask", "--scheduler", cluster)


@pytest.mark.parametrize(
    ("kind", "command"), [COMMANDS[1], COMMANDS[4], COMMANDS[5]], ids=lambda value: " ".join(map(str, value[:3]))
)
def test_a_cluster_gives_the_bytes_of_one_thread(hk, here, cluster, kind: str, command: tuple[object, ...]) -> None:
    records = stream_of(30, kind)
    alone = hk(*command, "--out", "maps", stdin=records)
    maps = product("maps")
    assert alone.exit_code == 0
    assert hk(*command, "--out", "maps", "--overwrite", *on(cluster), stdin=records) == alone
    assert product("maps") == maps
    one = hk(*command, "--out", "maps", "--overwrite", *on(cluster), "--jobs", 1, stdin=records)
    assert one == alone


def test_a_cluster_attributes_errors_to_their_records(hk: Hk, here: Path, cluster: str) -> None:
    for policy in ((), ("--on-error", "skip")):
        command = ("resize", "--size", 3, "--out", "maps", "--overwrite", *policy)
        alone = hk(*command, stdin=bad_stream())
        assert hk(*command, *on(cluster), stdin=bad_stream()) == alone
        assert alone.exit_code == 1


def test_a_worker_that_is_killed_in_mid_run_changes_nothing(hk: Hk, here: Path, cluster: str) -> None:
    """It is stopped first, so that it has tasks in hand, and none of them done, when it is killed."""
    from distributed import Client

    records = [{**record, "masks": None} for record in stream_of(60, "masks")]
    command = ("resize", "--size", 7, "--out", "maps.h5")
    alone = hk(*command, stdin=records)
    assert alone.exit_code == 0
    expected = Path("maps.h5").read_bytes()
    Path("maps.h5").unlink()
    (here / "in.jsonl").write_text(lines(records))
    with Client(cluster) as client:
        address, stopped = next(iter(client.run(os.getpid).items()))
        os.kill(stopped, signal.SIGSTOP)
        process = subprocess.Popen(
            [sys.executable, "-m", "hkmap", *map(str, command), "in.jsonl", *on(cluster)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None and not client.processing([address])[address]:
            pass
        os.kill(stopped, signal.SIGKILL)
        output, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")
    assert output.decode() == alone.stdout
    assert Path("maps.h5").read_bytes() == expected


def test_workers_of_a_cluster_must_find_the_folder_and_have_the_same_hkmap(hk, here, cluster, monkeypatch) -> None:
    records = stream_of(3, "masks")
    monkeypatch.setattr(clusters, "__version__", "9.9")
    result = hk("resize", "--size", 7, "--out", "maps", *on(cluster), stdin=records)
    assert result.exit_code == 1
    said = f"Error: a worker of the cluster has hkmap {hkmap.__version__}, expected 9.9; install the same\n"
    assert result.stderr == said
    monkeypatch.undo()
    with pytest.raises(WorkerError, match=r"gone: No such file or directory on a worker of the cluster; the files of"):
        clusters._work_there(halved, [2], here / "gone", hkmap.__version__)


def test_threads_of_a_worker_share_its_folder_in_turn(tmp_path: Path) -> None:
    before = Path.cwd()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with clusters._FOLDER.entered(tmp_path / "a"):
            inside.set()
            leave.wait(30)

    def other(name: str) -> None:
        with clusters._FOLDER.entered(tmp_path / name):
            seen.append(Path.cwd().name)

    holder = threading.Thread(target=first)
    holder.start()
    assert inside.wait(30)
    other("a")                          # the same folder: at once
    waiting = threading.Thread(target=other, args=("b",))
    waiting.start()
    assert seen == ["a"]
    leave.set()
    for thread in (holder, waiting):
        thread.join(30)
    assert seen == ["a", "b"]
    assert Path.cwd() == before
    done = clusters._work_there(halved, [2, -1], tmp_path / "a", hkmap.__version__)
    assert plain(iter(done.outcomes)) == [1, "-1: below 0"]
    assert clusters._work_there(halved, [4], None, hkmap.__version__).outcomes == [2]
    failed = pickle.loads(pickle.dumps(clusters._work_there(halved, [13], None, hkmap.__version__)))
    assert "in halved" in "".join(traceback.format_exception(failed.failure))


def test_a_task_that_kills_every_worker_is_a_sentence(cluster: str) -> None:
    with (
        open_pool(Workers(-1, cluster), reads_files=False) as pool,
        pytest.raises(WorkerError, match=r"the cluster gave up a task \(KilledWorker: "),
    ):
        list(pool.attempts(signal.raise_signal, [signal.SIGKILL]))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "x"])
def test_a_scheduler_that_cannot_be_reached_is_a_sentence(hk, here, monkeypatch, address: str) -> None:
    monkeypatch.setattr(clusters, "_PATIENCE", 0.2)
    result = hk(*PASSING, "--backend", "dask", "--scheduler", address, stdin=[{"id": "1"}])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: --scheduler {address}: cannot be reached; expected the address of a")
    assert len(result.records) == 1
    assert list(here.iterdir()) == []


def test_a_stranger_at_the_address_is_a_sentence(hk: Hk, here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def answer() -> None:
            with server.accept()[0] as line:
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)

        stranger = threading.Thread(target=answer)
        stranger.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        result = hk(*PASSING, "--backend", "dask", "--scheduler", address, stdin=[{"id": "1"}])
        stranger.join(30)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: --scheduler {address}: cannot be reached")


def test_a_cluster_without_workers_is_a_sentence(hk: Hk, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(clusters, "_PATIENCE", 0.2)
    with LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50) as empty:
        result = hk(*PASSING, *on(empty.scheduler_address), stdin=[{"id": "1"}])
    assert result.exit_code == 1
    assert "has no worker after 0.2 seconds; start some: `dask worker " in result.stderr


def test_without_the_extra_the_remedy_is_said(hk: Hk, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = hk(*PASSING, "--backend", "dask", "--scheduler", "tcp://127.0.0.1:9", stdin=[{"id": "1"}])
    assert result.exit_code == 1
    assert result.stderr == "Error: --backend dask: Dask is not installed; run `pip install 'hkmap[dask]'`\n"
