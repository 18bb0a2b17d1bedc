"""The page of evaluations: what it says, which records it shows, and that it needs nothing else and trusts no name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_learning_curves import NEW

from hkmap.results.page import page
from hkmap.shards.reader import ShardReader
from hkmap.shards.writer import ShardWriter

EVIL = "<script>alert(1)</script> $x_1$ & \"'"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page as a browser reads it: its tags in order, its text, and what is not closed as it was opened."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(content.decode())
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shard(path: Path, count: int, side: int = 16) -> Path:
    """A shard of noise with a map for each record but the first."""
    rng = np.random.default_rng(0)
    with ShardWriter(path) as writer:
        for number in range(count):
            image = cv2.imencode(".jpg", rng.integers(0, 256, (side, side, 3), dtype=np.uint8))[1].tobytes()
            values = np.zeros((4, 4), np.float32)
            values[number % 4] = 1
            record = {"id": f"r{number}", "image": "x.jpg", "label": 0, "class": "a"}
            writer.add(record, image, values if number else None, None)
    return path


def results(
    folder: Path, source: Path, probabilities: Sequence[float], *, control: str = "none",
    names: Sequence[str] = ("a", "b"), labels: Sequence[int | None] | None = None, answers: Sequence[int] | None = None,
    side: int = 16, ids: Sequence[str] | None = None, maps: bool = True, header: dict[str, Any] | None = None,
    **report: Any,
) -> Path:
    """Write results whose record i gives its label the i-th of the probabilities, and the next class the rest."""
    rng, count, classes = np.random.default_rng(1), len(probabilities), len(names)
    labels = [number % classes for number in range(count)] if labels is None else labels
    rows = []
    for number, (label, share) in enumerate(zip(labels, probabilities, strict=True)):
        shares = np.zeros(classes)
        shares[[label or 0, ((label or 0) + 1) % classes]] = share, 1 - share
        answer = int(shares.argmax()) if answers is None else answers[number]
        rows.append({
            "id": f"r{number}" if ids is None else ids[number], "number": number, "label": label,
            "class": None if label is None else names[label], "prediction": answer, "predicted_class": names[answer],
            "confidence": float(shares[answer]), "attention_mean": 0.5, "values": {"top1": 1.0},
            "probabilities": shares.tolist(), "curves": {"insertion": [0.1, 0.2, 0.4]},
            "map": (rng.random((4, 4)) / 2).round(4).tolist() if maps else None, "keys": {},
        })
    settings = {"step": side * side // 2, "image_size": [side, side], "map_size": [4, 4], "blur": "rise"}
    about = {
        "hkmap_results": 1, "classes": list(names), "settings": settings, "metrics": ["top1", "mse", "insertion"],
        "run": {"path": "runs/x", "seed": 3, "control": control, "arch": "resnet8+abn", "maps_learnt": True},
        "shards": [{"path": str(source), "sha256": ShardReader(source).digest}],
        "preprocessing": {"height": side, "width": side, "fit": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
        "session": {"started": "2026-11-20T10:11:12+00:00", "hkmap": "0.1", "torch": "2.13", "device": "cpu, 1 thread"},
        **(header or {}),
    }
    written = {
        "samples": count, "metrics": {"top1": 0.25, "mse": None, "mse_of_zeros": 0.125, "insertion": 0.5},
        "intervals": {"top1": [0.125, 0.375], "mse": None, "mse_of_zeros": None, "insertion": [0.4, 0.6],
                      "attention_mean": [0.25, 0.75]},
        "counts": {"top1": count, "mse": 0, "mse_of_zeros": 2, "insertion": count}, "attention_mean": 0.5,
        "curves": {"insertion": {"mean": [0.1, 0.2, 0.4], "low": [0.0, 0.1, 0.3], "high": [0.2, 0.3, 0.5]}},
        "control": control, "settings": settings, **report,
    }
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (about, *rows)))
    (folder / "eval.json").write_text(json.dumps(written))
    return folder


BEFORE = [0.5, 0.5, 0.5, 0.5, 0.5]
AFTER = [0.5, 0.75, 0.25, 0.625, 0.125]


@pytest.fixture
def three(here: Path) -> list[Path]:
    """A network, one that learnt human maps, and a sham control."""
    source = shard(here / "test.h5", 5)
    results(here / "none" / "eval", source, BEFORE)
    run = {"path": "runs/x", "seed": 3, "control": "none", "arch": "resnet8+abn", "maps_learnt": True}
    weights = {"weights": hashlib.sha256(b"weights").hexdigest()}
    results(here / "human" / "eval", source, AFTER, header={"run": run | weights})
    (here / "human" / "best.safetensors").write_bytes(b"weights")
    results(here / "sham" / "eval", source, [0.5, 0.5, 0.5, 0.5, 1.0], control="shuffled")
    (here / "human" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NEW))
    return [Path("none"), Path("human"), Path("sham")]


def test_report_writes_a_page_that_needs_nothing_else(hk: Callable[..., Any], three: list[Path]) -> None:
    line = ("report", *three, "--out", "report.html")
    result = hk(*line)
    assert result.exit_code == 0, result.stderr
    content = Path("report.html").read_bytes()
    assert result.records == [{"report": "report.html", "runs": ["none", "human", "sham"], "bytes": len(content)}]
    read = Page(content)
    assert not read.wrong
    assert not {"script", "link", "iframe", "object", "image"} & {tag for tag, _ in read.tags}
    assert len(read.all("style")) == 1
    assert not re.search(rb"https?:|@import|url\((?!#)", content)
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in read.all("img"))
    assert read.all("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert all("scope" in attributes for attributes in read.all("th"))
    assert all("aria-label" in attributes for _, attributes in read.tags if attributes.get("role") in ("img", "region"))
    again = hk(*line)
    assert again.exit_code == 1
    assert "report.html: exists already; choose another name, or use --overwrite" in again.stderr
    assert hk(*line, "--overwrite").exit_code == 0
    assert Path("report.html").read_bytes() == content      # the same results give the same page


def test_all_that_a_chart_draws_is_in_the_page_s_colours(three: list[Path]) -> None:
    charts = re.findall(rb"<svg.*?</svg>", page(three), re.DOTALL)
    assert charts
    assert not [found for chart in charts for found in re.findall(rb": (#[0-9a-f]{6})", chart)]


def test_the_page_says_what_was_measured(three: list[Path]) -> None:
    text = Page(page(three)).text
    for said in (
        "Evaluation of none, human, sham",
        "How often each network is right, and how honest their maps are, measured on 5 records of 2 classes.",
        "top1 ↑ The label is the answer 0.2500 [0.1250, 0.3750] 0.2500",
        "mse ↓ Mean square difference between the attention map and the human map applies to no record",
        "mse_of_zeros Given with mse 0.1250 on 2 records",
        "attention_mean Mean of the network's own attention map, near 0 where it is dark 0.5000 [0.2500, 0.7500]",
        "sham sham control",
        "hkmap compare none human sham",
        "sham control: this network was trained on the maps of other images",
        "Figures Of all records", "Insertion and deletion", "bands their 95 % intervals", "Calibration", "Confusion",
        "Learning curves", "Records", "Settings and provenance",
        "training seed 3", "network resnet8+abn", "run runs/x", "image size 16, 16",
        "evaluated 2026-11-20, on cpu, 1 thread, by hkmap 0.1, torch 2.13",
        ShardReader(Path("test.h5")).digest,
    ):
        assert said in text


def test_a_run_that_was_trained_again_has_no_learning_curves(three: list[Path]) -> None:
    Path("human/best.safetensors").write_bytes(b"others")
    assert "Learning curves" not in Page(page(three)).text


def test_curves_that_cannot_be_compared_are_told(here: Path) -> None:
    source = shard(here / "test.h5", 2)
    sizes = {"step": 128, "image_size": [16, 16], "map_size": [4, 4]}
    runs = [results(here / blur, source, [0.5, 0.75], header={"settings": sizes | {"blur": blur}})
            for blur in ("rise", "zeros")]
    said = "The blur is not that of all runs (rise, zeros), so their curves cannot be compared."
    assert said in Page(page(runs)).text
    assert "cannot be compared" not in Page(page(runs[:1])).text


def test_one_run_is_told_of_as_one(here: Path) -> None:
    source = shard(here / "test.h5", 4)
    alone = results(here / "alone", source, [0.25, 1.0, 0.75, 0.5], share_of_people={"iou": 0.875},
                    share_of_people_intervals={"iou": [0.75, 1.0]}, metrics={"iou": 0.25, "iou_of_people": 0.375},
                    counts={"iou": 4, "iou_of_people": 4}, intervals={},
                    only={"what": "misclassified", "baseline": None, "records": 4, "of": 9}, curves={})
    read = Page(page([alone]))
    assert (
        "How often the network is right, and how honest its maps are, measured on 4 records of 2 classes, those of 9 "
        "that the network itself misclassifies."
    ) in read.text
    said = "As a share of how well people agree with each other; 1: as well as they do"
    assert f"iou, share of people ↑ {said} 0.8750 [0.7500, 1.0000]" in read.text
    assert "iou_of_people The same, of the annotators among each other 0.3750" in read.text
    for absent in ("hkmap compare", "sham", "Learning curves", "Insertion and deletion"):
        assert absent not in read.text
    assert shown(read) == {"Most confident": ["r1", "r0"], "Least confident": ["r3", "r2"]}      # r0 and r2: .75 each


def test_one_record(here: Path) -> None:
    text = Page(page([results(here / "alone", shard(here / "test.h5", 1), [0.25])])).text
    assert "measured on one record of 1 class." in text


def shown(read: Page) -> dict[str, list[str]]:
    """The ids of the records under each heading of the sheet."""
    text = read.text[read.text.index("Sorted by" if "Sorted by" in read.text else "The records of whose"):]
    text = text[:text.index("Settings and provenance")]
    parts = re.split("(Largest gains|Largest losses|Most confident|Least confident)", text)
    return {
        heading: list(dict.fromkeys(re.findall(r"\br\d+\b", part)))
        for heading, part in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_the_sheet_has_the_largest_gains_and_losses_from_the_first_run_to_the_last_that_is_no_sham(
    three: list[Path]
) -> None:
    read = Page(page(three))
    assert "changed from none to human." in read.text
    assert shown(read) == {"Largest gains": ["r1", "r3"], "Largest losses": ["r4", "r2"]}      # r0 did not change
    assert "+0.250" in read.text
    assert "-0.375" in read.text
    of_r4 = [image["alt"] for image in read.all("img") if image["alt"].endswith(" r4")]
    assert of_r4 == [f"{what} of record r4" for what in ("image", "human map", "none", "human", "sham")]
    assert "sham ✓ a p(label) 1.000" in read.text
    assert "human ✗ b p(label) 0.125" in read.text


def test_a_tile_shows_the_image_as_the_network_saw_it(here: Path) -> None:
    source = shard(here / "test.h5", 2, side=32)
    read = Page(page([results(here / "a", source, [0.5, 0.75], side=32)]))
    found = next(image["src"] for image in read.all("img") if image["alt"] == "image of record r1")
    tile = cv2.imdecode(np.frombuffer(base64.b64decode(found.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    seen = ShardReader(source).read(1).image("r1")[..., ::-1]
    assert tile.shape == (160, 160, 3)
    small = cv2.resize(tile, (32, 32), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - seen).mean() < 30       # another image's would be 85
    assert "no map" in read.text                   # r0 has no human map
    assert "human map peak 1.00" in read.text


def test_what_a_network_looked_at_may_be_unknown(here: Path) -> None:
    source = shard(here / "test.h5", 2)
    text = Page(page([results(here / "a", source, [0.5, 0.75], maps=False, labels=[None, None])])).text
    assert "no label" in text
    for absent in ("Calibration", "Confusion", "classes", "p(label)"):
        assert absent not in text


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda path: path.unlink(), "test.h5 is no longer there; write the report where the evaluation ran."),
    (lambda path: [path.unlink(), shard(path, 6)], "is not what was measured, as its digest differs; evaluate again."),
    (lambda path: path.write_bytes(b"x"), "test.h5"),
])
def test_without_its_shards_a_page_has_no_records(
    three: list[Path], change: Callable[[Path], object], sentence: str
) -> None:
    change(Path("test.h5"))
    read = Page(page(three))
    assert "No records are shown: " in read.text
    assert sentence in read.text
    assert not read.all("img")


def test_names_are_text_everywhere(hk: Callable[..., Any], here: Path) -> None:
    source = shard(here / "a&b.h5", 4)
    options = {"names": [EVIL, "b"], "ids": [EVIL, "<img src=x onerror=alert(1)>", "\ud800", "r3"]}
    for name in ("<b>&", "$y$"):
        results(here / name, source, BEFORE[:4] if name == "$y$" else AFTER[:4], **options,
                header={"run": {"path": EVIL, "seed": None, "control": "none", "arch": EVIL, "maps_learnt": None}})
    assert hk("report", "<b>&", "$y$", "--out", "r.html").exit_code == 0
    content = Path("r.html").read_bytes()
    read = Page(content)
    assert not read.wrong
    assert not read.all("script")
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert {image["src"][:16] for image in read.all("img")} == {"data:image/jpeg;"}
    assert read.text.count(EVIL) > 4
    for text in ("<b>&", "$y$", "<img src=x onerror=alert(1)>", "a&b.h5", "\\ud800"):
        assert text in read.text
    assert b"<script" not in content


def test_a_confusion_has_rows_of_labels_and_columns_of_answers(here: Path) -> None:
    source = shard(here / "test.h5", 4)
    read = Page(page([results(here / "a", source, [0.75] * 4, labels=[0, 0, 0, 1], answers=[0, 0, 1, 0],
                              names=("cat", "dog"))]))
    assert "a cat dog cat 2 1 dog 1 " in read.text[read.text.index("Confusion"):]
    shares = [cell["style"].partition(";")[0] for cell in read.all("td") if "style" in cell]
    assert shares == ["--share: 66%", "--share: 33%", "--share: 100%", "--share: 0%"]


def test_many_classes_get_a_table_of_their_confusions(here: Path) -> None:
    source, names = shard(here / "test.h5", 66), [f"n{number}" for number in range(33)]
    answers = [(number + (number % 33 < 3)) % 33 for number in range(66)]       # 0, 1 and 2 are taken for the next
    other = [3 if number == 0 else number % 33 for number in range(66)]
    runs = [
        results(here / name, source, [0.75] * 66, names=names, answers=told)
        for name, told in (("one", answers), ("two", other))
    ]
    text = Page(page(runs)).text
    table = text[text.index("The most frequent wrong answers"):text.index("Records Sorted")]
    assert re.findall(r"n\d+ n\d+ \d+ \d+", table) == ["n0 n1 2 0", "n1 n2 2 0", "n2 n3 2 0", "n0 n3 0 1"]


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy(here: Path) -> None:
    source = shard(here / "test.h5", 4)
    text = page([results(here / "a", source, [0.75, 0.75, 0.75, 0.25])]).decode()
    # all answers have a confidence of .75, and three of four are right
    assert "its calibration error is 0.0000" in text
    text = page([results(here / "b", source, [1.0, 1.0, 1.0, 0.0])]).decode()
    assert "its calibration error is 0.2500" in text


def test_a_page_of_500_records_and_four_runs_is_small(here: Path) -> None:
    source, rng = shard(here / "test.h5", 500, side=224), np.random.default_rng(0)
    names = [f"class {number}" for number in range(25)]
    steps = np.linspace(0, 1, 225).tolist()
    curves = {name: {"mean": rng.random(225).tolist(), "low": steps, "high": steps}
              for name in ("insertion", "deletion", "insertion_accuracy", "deletion_accuracy")}
    runs = [
        results(here / f"run{number}" / "eval", source, rng.random(500).tolist(), names=names, side=224,
                control="shuffled" if number > 1 else "none", curves=curves) for number in range(4)
    ]
    content = page(runs)
    assert content.count(b"<section") == 16
    assert len(content) < 5_000_000


def test_results_of_other_records_are_refused(hk: Callable[..., Any], three: list[Path], here: Path) -> None:
    results(here / "other", shard(here / "other.h5", 4), BEFORE[:4])
    for line, sentence in (
        (("none", "other"), "records"),
        (("none", "none/eval"), "none: these results are named twice; name each run once"),
        (("none", "."), ".: has no results"),
    ):
        result = hk("report", *line, "--out", "r.html")
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert not Path("r.html").exists()


def test_a_page_has_a_known_ending(hk: Callable[..., Any], three: list[Path]) -> None:
    result = hk("report", *three, "--out", "report.pdf")
    assert result.exit_code == 2
    assert "'report.pdf': expected a name that ends in .html." in result.stderr
