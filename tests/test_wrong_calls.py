"""Called wrongly: exit code 2, a sentence on what was expected beside the usage, nothing on stdout, nothing written."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

SIZE = "expected a side N from 1, or WIDTHxHEIGHT, such as 224x168, in pixels."
CROP = "expected X,Y,W,H in whole pixels, W and H from 1"
LESION = "expected NAME or NAME=WEIGHT with a weight above 0 and up to 1"
FOLDS = "--group and --fold-seed say how to cut folds; give --fold I/K too"
CLUSTER = "--backend dask and --scheduler ADDRESS go together; give both, or neither."
FILES = {
    "a.h5": b"\x89HDF", "in.jsonl": b'{"id": "1"}\n', "G": b"1,40,30\n", "t.csv": b"image,x,y\n", "p.png": b"\x89PNG",
    "c.json": b'{"images": [],\n "annotations": []}', "z.jsonl.gz": b"\x1f\x8b", "w.tar": bytes(512),
}

#: A command line and what is said; where values follow, {} is each of them in turn.
WRONG: list[tuple[str, ...]] = [
    # the group, and what all commands share
    ("resise", "command 'resise' is unknown; did you mean 'resize'? expected one of cub, dogs, "),
    ("resize --out m", "Missing option '--size'"),
    ("resize --side 3", "No such option"),
    ("resize --size 3 --out m gone.jsonl", "'gone.jsonl': No such file or directory"),
    ("resize --size 3 --out m a.h5", "a.h5: a shard, expected a file of records; use `hkmap unpack a.h5 | hkmap"),
    ("resize --size 3 --out m --max-errors -1", "-1 is not in the range 0<=x<=1000000000"),
    ("resize --size 3 --out m --on-error ignore", "'ignore' is not one of 'stop', 'skip'"),
    ("resize --size 3 --out m --jobs {}", "'{}': expected a number of threads from 1 to 128, or -1 for al", "0",
     "-2", "all", "129", "1000", "9" * 5000),
    ("resize --size 3 --out m --backend dask", CLUSTER),
    ("resize --size 3 --out m --scheduler tcp://x:1", CLUSTER),
    # an option that is given twice, or that other programs have under another name
    ("resize --size 3 --size 4 --out m", "--size is given 2 times, and only one can count; give it once."),
    ("pack x.h5 --classes G --classes G --classes G", "--classes is given 3 times"),
    ("show --out a.png --legend --no-legend", "--legend is given 2 times"),
    ("split a.h5 --out out --folds 2 --folds 3", "--folds is given 2 times"),
    ("train a.h5 --out run --lr 1 --lr 1", "--lr is given 2 times"),
    ("train a.h5 --out run {} 1", "No such option '{}'. Did you mean '--lr'?", "--learning-rate", "--learning_rate",
     "--LR"),
    ("train a.h5 --out run {} 1", "No such option '{}'. Did you mean '--batch-size'?", "--batchsize", "--batch_size",
     "--bs"),
    ("train a.h5 {} run", "Did you mean '--out'?", "--output", "--output-dir", "-o"),
    ("train a.h5 --out run {}", "Did you mean '--arch'?", "--model=resnet18", "--backbone=resnet18"),
    ("predict {} run", "Did you mean '--from'?", "--ckpt", "--checkpoint", "--run"),
    ("resize --size 3 --out m {} 2", "Did you mean '--jobs'?", "--n-jobs", "--num-workers", "-j"),
    ("resize --size 3 --out m {}", "Did you mean '--overwrite'?", "--force", "-f", "--over_write"),
    ("resize --size 3 --out m --normalize max", "Did you mean '--normalise'?"),
    ("eval a.h5 --from run --metrics top1", "Did you mean '--metric'?"),
    ("split a.h5 --out out --n-splits 3", "Did you mean '--folds'?"),
    ("show --out a.png --color jet", "Did you mean '--colour'?"),
    # a file of another kind
    ("bubbles2map --out m t.csv",
     "t.csv: a file of annotations, expected a file of records; use `hkmap annotations t.csv --images DIR | hkmap"),
    ("pack x.h5 c.json", "c.json: a file of annotations, expected a file of records; use `hkmap annotations c.json"),
    ("{} p.png", "p.png: an image, expected a file of records; use `hkmap folder DIR | hkmap", "sample 3", "pack x.h5",
     "check"),
    ("resize --size 3 --out m d", "d: a folder, expected a file of records; use `hkmap folder d | hkmap"),
    ("resize --size 3 --out m z.jsonl.gz",
     "z.jsonl.gz: compressed, expected a file of records; use `zcat z.jsonl.gz |"),
    ("pack x.h5 w.tar", "w.tar: a tar, expected a file of records; use `hkmap webdataset w.tar --out DIR | hkmap"),
    ("{} in.jsonl", "in.jsonl: a file of records, expected a shard; use `cat in.jsonl | hkmap pack NAME.h5`", "info",
     "unpack", "merge x.h5", "train --out run", "split --folds 2 --out out"),
    ("train --out run {}", "expected a shard; use `hkmap", "t.csv", "p.png", "w.tar"),
    ("train --out run --config {} a.h5", "does not exist", "gone.toml"),
    ("pack x.h5 in.jsonl --classes {}", "{}: a device, expected a regular file.", "/dev/zero", "/dev/null"),
    ("annotations {} --images .", "{}: a device, expected a regular file.", "/dev/zero"),
    ("resize --size 3 --out m {}", "'{}': a device, expected a regular file.", "/dev/zero", "/dev/null"),
    ("list bandwiths", "'bandwiths' is not one of "),
    # sources
    ("folder gone", "Directory 'gone' does not exist."),
    ("cub . --parts --gaze G", "--gaze and --parts both fill the points"),
    ("cub . {}", "name it with --bubbles", "--frame 20x20", "--columns x=cx", "--origin 1"),
    ("cub . --bubbles G --frame {}", "'{}': expected a side N from 1, or WIDTHxHEIGHT", "20x", "0x20"),
    ("cub . --bubbles G --columns {}", '"{}": expected NAME=COLUMN', "cx=x", "x", "x="),
    ("cub . --bubbles gone.csv", "does not exist"),
    ("idrid . --binary --part grading", "--binary uses both parts; omit --part"),
    ("annotations G --images . --origin 1 --format coco", "--origin"),
    # maps
    ("{} --out maps --size 0", SIZE, "bubbles2map", "boxes2map", "masks2map"),
    ("resize --out m --size '{}'", SIZE, "0", "-1", "7x", "x7", "7x0", "1.5", "a", "", "7*3", "3x4x5", "²"),
    ("resize --out m --size 3 --normalise maxx",
     "'maxx' is unknown; did you mean 'max'? expected one of max, minmax, sum, none."),
    ("bubbles2map --out m --bandwidth '{}'",
     "bandwidth '{}' is unknown; expected one of scott, radius, fixed, cv, or a number of image pixels above 0, up to "
     "a million.", "1e7", "0", "-3", "nan", "inf", "silverman", ""),
    ("masks2map --out m --lesion '{}'", LESION, "", "=1", "EX=", "EX=x", "EX=0", "EX=1.1", "EX=-1", "EX=nan"),
    ("masks2map --out m --lesion EX --lesion EX=0.5", "EX: expected each name once"),
    ("boxes2map --out m --label a --label a=0.5", "a: expected each name once"),
    ("certainty --out m --above {}", "--above", "1", "-0.1", "x"),
    # images
    ("crop --out v", "0 ways given; give one of --crop, --center-crop and --letterbox"),
    ("crop --out v --crop 0,0,5,5 --letterbox 1", "2 ways given"),
    ("crop --out v --crop {}", f"'{{}}': {CROP}", "0,0,5", "-1,0,5,5", "0.5,0,5,5", "0,0,0,5"),
    ("crop --out v --letterbox '{}'", "'{}': expected W:H, such as 4:3", "0", "-1", "nan", "inf", "4:0", "-4:-3",
     "4:3:2", "wide", "1001", "1:1001", ""),
    ("crop --out v --center-crop 4/3", "'4/3': expected W:H, such as 4:3"),
    ("crop --out v --letterbox 1 --jpeg 101", "101 is not in the range 1<=x<=100"),
    ("crop --out v --letterbox 1 --map-size 0", "expected a side N from 1"),
    ("sample -- {}", "expected a number of records from 1 to 999999999, or a share such", "0", "1.5", "-3", "nan", "x",
     "0.0", "1" + "0" * 9, "9" * 5000),
    ("sample 0.5 --per-class", "A share already applies to each class; give N"),
    # shards
    ("pack x.h5 --expect 0", "0 is not in the range 1<=x<=1000000000"),
    ("pack x.h5 --overwrite --resume", "--append and --resume keep shards"),
    ("pack x.h5 --overwrite --append", "--append and --resume keep shards"),
    ("pack x.h5 {}", "--store pixels and --size go together; give both, or neither", "--store pixels", "--size 12",
     "--store files --size 12"),
    ("pack x.h5 --shard-bytes '{}'", "expected a number of bytes such as 500000, 500MB or 2GiB, up to 1000TB.", "", "0",
     "0GB", "-1", "1001TB", "1.5GB", "MB", "5 XB", "1e9", "٣", "9" * 13),
    ("unpack a.h5 --to {}", "--to {} writes files; give --out", "webdataset", "imagefolder"),
    ("unpack a.h5 --out x --shard-size 3", "--shard-size is for tars; use --to webdataset, or `hkmap merge`"),
    ("info gone.h5", "gone.h5: no such file; expected a shard"),
    ("info b-*.h5", "b-*.h5: no file has a name of this pattern"),
    ("check --ignore emptymap", "'emptymap' is unknown; did you mean 'empty-map'?"),
    ("check {}", "Expected one file of records, or only shards", "a.h5 in.jsonl", "in.jsonl in.jsonl"),
    ("check --quick in.jsonl", "--quick is not for records; omit it."),
    ("check --full", "--full is not for records; omit it."),
    ("check --ids 3 a.h5", "--ids is not for shards; omit it."),
    ("check --ignore empty-map a.h5", "--ignore is not for shards; omit it."),
    ("check --quick --full a.h5", "--quick and --full are opposites; give one of them."),
    ("check gone.jsonl", "'gone.jsonl': No such file or directory"),
    ("split a.h5 --out out {}", "Give either --shares NAME=SHARE,... or --folds K", "",
     "--folds 2 --shares a=0.5,b=0.5"),
    ("split a.h5 --out out --shares a=0.5,b=0.4", "the shares add up to 0.9, expected 1"),
    ("split a.h5 --out out --shares a=1", '"a=1": expected two or more parts'),
    ("split a.h5 --out out --shares a=0.5,a=0.5", '"a=0.5": expected NAME=SHARE with a NAME of its own'),
    ("split a.h5 --out out --shares ../a=0.5,b=0.5", '"../a=0.5": expected NAME=SHARE'),
    ("split a.h5 --out out --shares {},b=1", '"{}": expected a share above 0, such as', "a=0", "a=-1", "a=1/0", "a=x"),
    # networks, and people
    ("train a.h5 --out run --arch vgg16", "architecture 'vgg16' is unknown; expected one of resnet8"),
    ("train a.h5 --out run --fold {}", "expected fold I of K as I/K, such as 1/5 to 5/5", "0/3", "4/3", "1/1", "2",
     "1/3/3", "-1/3"),
    ("train a.h5 --out run {}", FOLDS, "--group patient", "--fold-seed 0"),
    ("show --out a.jpg", "a.jpg: expected a name that ends in .png"),
    ("show --out a.png --colour jet", "colour 'jet' is unknown; expected one of"),
]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [(line.format(value), sentence.format(value)) for line, sentence, *values in WRONG for value in values or [""]],
)
def test_a_wrong_call_is_2_and_says_what_was_expected(hk: Callable, here: Path, line: str, sentence: str) -> None:
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    Path("d").mkdir()
    result = hk(*shlex.split(line), stdin=[{"id": "1"}])
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in " ".join(result.stderr.split())
    assert "Usage: hkmap" in result.stderr
    assert {path.name for path in here.iterdir()} == {*FILES, "d"}


CONFIG = 'command = "train"\narch = "resnet8"\nwidth = 4\nimage_size = 32\nepochs = 1\ninput = [32, 32]\n'


@pytest.mark.parametrize(("command", "text", "said"), [
    ("train", "epoch = 3",
     "c.toml: the key 'epoch' is unknown; did you mean epochs? expected options of `hkmap train`"),
    ("train", "batch-size = 3", "c.toml: the key 'batch-size' is unknown; did you mean batch_size?"),
    ("train", "gamma = 1", "c.toml: the key 'gamma' is unknown;"),
    ("finetune --from d", "image_size = 9", "c.toml: the key 'image_size' is unknown; did you mean"),
    ("finetune --from d", CONFIG + "gama = 1", "c.toml: the key 'gama' is unknown; did you mean gamma?"),
    ("train", "epochs = 'many'", "c.toml: epochs is 'many'; expected a number"),
    ("train", "epochs = ", "c.toml: not a TOML file"),
])
def test_a_config_has_keys_that_the_command_uses(hk, here: Path, command: str, text: str, said: str) -> None:
    Path("c.toml").write_text(text)
    Path("a.h5").write_bytes(b"")
    Path("d").mkdir()
    result = hk(*command.split(), "a.h5", "--config", "c.toml", "--out", "run")
    assert result.exit_code in (1, 2)
    assert result.stderr.count("Error: ") == 1
    assert said in result.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize(("command", "warned"), [
    ("finetune --from d", ["warning: c.toml: of `hkmap train`; `hkmap finetune` has no arch, image_size, width, and "
                           "takes the rest"]),
    ("train", []),
])
def test_a_config_of_another_command_gives_what_both_have(hk, here: Path, command: str, warned: list[str]) -> None:
    Path("c.toml").write_text(CONFIG + "lr = -1\n")      # an option of both, which the check of its value shows
    Path("a.h5").write_bytes(b"")
    Path("d").mkdir()
    result = hk(*command.split(), "a.h5", "--config", "c.toml", "--out", "run")
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == warned
    assert "Invalid value for '--lr': -1" in result.stderr


@pytest.mark.parametrize("line", ["resize --size 3 --missing pass --out m -q -q -v -v in.jsonl", "list --help --help"])
def test_flags_and_counts_may_be_repeated(hk, here: Path, line: str) -> None:
    Path("in.jsonl").write_text('{"id": "1"}\n')
    assert hk(*line.split()).exit_code == 0


def test_records_may_be_in_a_file_that_ends_in_json(hk, here: Path) -> None:
    Path("in.json").write_text('{"id": "1"}\n{"id": "2"}\n')
    result = hk("resize", "--size", 3, "--missing", "pass", "--out", "m", "in.json")
    assert [record["id"] for record in result.records] == ["1", "2"]
