"""Write a golden set into a folder: ``python tests/golden/make.py FOLDER``. What it is for: README.md, beside this.

The one that is committed was made once, by the code that wrote layout 1, and is never made again. In another folder
this shows what the code of today would make. Everything goes through the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import scipy.io
from cases import CASES, NETWORK_CASES, SHARDS, TRAINING, Names, damage, describe_shard, run_case, sha256

NAMES = Names()
SIZES = ((24, 16), (16, 24), (20, 20), (30, 18), (17, 16), (16, 16), (40, 22), (18, 21))      # (width, height)
IDS = ("a-0", "a-1", "b 2", "ü/3", "鳥4", "p5@x", "q6+w", "r7")
CLASSES = ("owl", "auk", "ibis é")
FILES = [f"{('owl', 'auk', 'ibis')[number % 3]}/{number}.{'jpg' if number in (2, 5) else 'png'}" for number in range(8)]


def run(arguments: list[str], stdin: bytes = b"") -> tuple[int, bytes]:
    done = subprocess.run([sys.executable, "-m", "hkmap", *arguments], input=stdin, capture_output=True, check=False)
    sys.stderr.write(done.stderr.decode() if done.returncode else "")
    return done.returncode, done.stdout


def hk(line: str, to: str | None = None) -> None:
    """Run a pipeline that must not fail; its last stdout goes to a file."""
    stdout = b""
    for stage in line.split(" | "):
        code, stdout = run(NAMES.arguments(stage), stdout)
        assert code == 0, stage
    if to is not None:
        Path(to).write_bytes(stdout)


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def dump(path: str, value: Any) -> None:
    write(path, json.dumps(value))


def lines(path: str, values: list[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(value) + "\n" for value in values))


def picture(path: str, size: tuple[int, int], seed: int) -> None:
    """A slope of colour and a bright square, whose place the seed tells; it takes few bytes."""
    width, height = size
    down, across = np.mgrid[:height, :width]
    pixels = np.stack([across * 4, down * 5, (across + down) * 2 + 10 * (seed % 5)], axis=-1).astype(np.uint8)
    row, column = divmod(seed % 4, 2)
    pixels[row * height // 2 :, column * width // 2 :][: height // 2, : width // 2] = 200 - 9 * (seed % 7)
    save(path, pixels)


def save(path: str, pixels: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(path, pixels)


def mask(path: str, size: tuple[int, int], *spots: tuple[int, int, int, int], value: int = 255) -> str:
    """Rectangles (x, y, width, height) on black."""
    pixels = np.zeros(size[::-1], np.uint8)
    for x, y, width, height in spots:
        pixels[y : y + height, x : x + width] = value
    save(path, pixels)
    return path


def some(rng: np.random.Generator, size: tuple[int, int], count: int, **more: Any) -> list[dict[str, Any]]:
    """So many places in an image."""
    width, height = size
    places = [(float(rng.integers(2, 4 * width - 2)) / 4, float(rng.integers(2, 4 * height - 2)) / 4)
              for _ in range(count)]
    return [{"x": x, "y": y} | {name: values[index % len(values)] for name, values in more.items()}
            for index, (x, y) in enumerate(places)]


def write_photos() -> None:
    for number, (file, size) in enumerate(zip(FILES, SIZES, strict=True)):
        picture(f"photos/{file}", size, number)
    save("photos/loose.png", np.full((16, 18, 3), 77, np.uint8))
    for number in (0, 3, 4):
        stem = FILES[number].rpartition(".")[0]
        mask(f"masks/{stem}.png", SIZES[number], (3, 2, 6, 5))
        mask(f"unknown/{stem}.png", SIZES[number], (3, 7, 6, 2))
    mask("dont-look/owl/0.png", SIZES[0], (0, 0, 3, 3))


def annotations(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """What a record has; no two have the same."""
    return marks(number, rng) | shapes(number) | masks(number)


def marks(number: int, rng: np.random.Generator) -> dict[str, Any]:
    size = SIZES[number]
    users = ["ann", "bob", "ann", "Zoë"]
    found: dict[str, Any] = {}
    if number not in (3, 7):
        count = (5, 4, 1, 0, 6, 2, 7)[number]
        found["bubbles"] = some(rng, size, count, radius=[2, 3.5, 4], user=users, weight=[1, 0.5])
    if number == 3:
        found["bubbles"] = []
    if number % 2 == 0:
        found["points"] = some(rng, size, 4 + number, user=users, weight=[120, 300, 80])
    return found


def shapes(number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if number in (0, 1, 4, 6):
        found["boxes"] = [{"x": 1.5, "y": 2, "width": 7, "height": 6.25, "label": "head"}]
        found["boxes"] += [{"x": 6, "y": 5, "width": 8, "height": 20, "label": "wing"}] * (number in (1, 6))
    if number in (1, 6):
        found["polygons"] = [{"points": [[2, 2], [12.5, 3], [9, 13.5], [4, 11]], "label": "SE"}]
    return found


def masks(number: int) -> dict[str, Any]:
    size = SIZES[number]
    found: dict[str, Any] = {}
    if number in (0, 2, 4, 6):
        found["masks"] = {
            "EX": mask(f"lesions/{number}_EX.png", size, (2, 3, 4, 5), (9, 9, 1, 1)),
            "MA": mask(f"lesions/{number}_MA.png", size, (12, 4, 1, 1)), "SE": mask(f"lesions/{number}_SE.png", size),
        }
    if number in (0, 4):
        found["unknown"] = {"void": mask(f"lesions/{number}_void.png", size, (0, 10, 9, 4))}
    if number in (0, 6):
        found["dont_look"] = {"sky": mask(f"lesions/{number}_sky.png", size, (0, 0, 7, 4))}
    return found


def write_records() -> None:
    rng = np.random.default_rng(7)
    records = []
    for number, (identifier, file, size) in enumerate(zip(IDS, FILES, SIZES, strict=True)):
        record = {"id": identifier, "image": f"photos/{file}", "size": list(size), "patient": f"P{number // 2}"}
        if number != 7:
            record |= {"label": number % 3, "class": CLASSES[number % 3]}
        records.append(record | {"split": "train" if number < 5 else "test"} | annotations(number, rng))
    lines("records.jsonl", records)
    drawn = [record for record in records if record.get("bubbles")]
    lines("users.jsonl", drawn)
    faint = [[bubble | {"weight": 0.1} for bubble in record["bubbles"]] for record in drawn]
    lines("faint.jsonl", [record | {"bubbles": bubbles} for record, bubbles in zip(drawn, faint, strict=True)])
    lines("points.jsonl", [
        {key: value for key, value in record.items() if key != "bubbles"} for record in records if "points" in record
    ])
    lines("odd.jsonl", [
        records[0] | {"map": "maps/lesions.h5#0", "bubbles": [{"x": 90, "y": 3, "radius": 2}]}, records[0],
        records[1] | {"size": [5, 5], "split": "test", "image": "photos/gone.png"}, records[2] | {"label": 1},
        records[3] | {"map": "maps/zero.npy", "split": "train"}, records[3] | {"id": "again", "split": "test"},
    ])


def write_cub() -> None:
    root = "CUB_200_2011"
    names = ("001.Ani/Ani_01.jpg", "001.Ani/Ani_02.jpg", "002.Auk/Auk_01.jpg", "003.Owl/Owl_9.jpg")
    for number, name in enumerate(names):
        picture(f"{root}/images/{name}", SIZES[number], number)
        picture(f"CUB_200_2010/images/{name}", SIZES[number], number)
        box = {"left": 2.0, "top": 3.0, "right": 11.0, "bottom": 12.0}
        outline = np.zeros(SIZES[number][::-1], np.uint8)
        outline[3:9, 2:8] = 1
        mat = Path(f"CUB_200_2010/annotations-mat/{name}").with_suffix(".mat")
        mat.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(mat, {"bbox": box, "seg": outline}, do_compression=True)
    texts = {
        "images": "\n".join(f"{number} {name}" for number, name in enumerate(names, 1)),
        "image_class_labels": "1 1\n2 1\n3 2\n4 3", "classes": "1 001.Ani\n2 002.Auk\n3 003.Owl",
        "train_test_split": "1 1\n2 0\n3 1\n4 1", "parts/parts": "1 back\n2 left eye",
        "bounding_boxes": "1 4.0 5.0 12.0 10.5\n2 1 1 2 2\n3 0 0 20 20\n4 3 3 9 9",
        "parts/part_locs": "1 1 12.0 8.0 1\n1 2 0.0 0.0 0\n2 1 0.0 0.0 0\n3 2 3.5 4 1\n4 1 9 9 1",
    }
    for name, text in texts.items():
        write(f"{root}/{name}.txt", text + "\n")
    write("CUB_200_2010/lists/train.txt", f"{names[0]}\n{names[2]}\n")
    write("CUB_200_2010/lists/test.txt", f"{names[1]}\n{names[3]}\n")
    write("tables/cub.csv", "file,x,y,r,user,weight,note\nAni_01.jpg,5,6.5,3,ann,1,a\nAni_01.jpg,9,4,2,bob,2,\n"
          "001.Ani/Ani_01.jpg,15,12,2.5,ann,1,b\n3,7,7,4,ann,1,\n3,12,9,2,ann,1,\n3,3,15,2,bob,1,c\nOwl_9,8,8,3,bob,1,\n")
    write("tables/gaze1.txt", "1,24,16,3.5,4,120,9,9,250\n3,20,20,10,10,300\n")
    write("tables/gaze2.txt", "1,24,16,5,4,100\n4,30,18,20,9,90,21.5,8,110\n1,24,16,6,6,60\n")
    write("tables/classes.txt", "owl\nauk\nibis é\nspare\n")


def write_dogs() -> None:
    lists = {"train": ["n01-Pug/n01_10.jpg", "n02-Chow/n02_7.jpg"], "test": ["n01-Pug/n01_9.jpg"]}
    for split, files in lists.items():
        for number, file in enumerate(files):
            picture(f"dogs/Images/{file}", SIZES[number], number)
            width, height = SIZES[number]
            write(f"dogs/Annotation/{file[:-4]}", voc(file, width, height, file[4:7], (1, 2, 12, 13)))
        cells = np.empty((len(files), 1), object)
        cells[:, 0] = files
        labels = np.array([[1 + ("Chow" in file) for file in files]]).T
        Path("dogs/lists").mkdir(exist_ok=True)
        scipy.io.savemat(f"dogs/lists/{split}_list.mat", {"file_list": cells, "labels": labels}, do_compression=True)


def voc(file: str, width: int, height: int, label: str, box: tuple[int, int, int, int]) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{name}>{side}</{name}>" for name, side in zip(names, box, strict=True))
    return (f"<annotation><filename>{file}</filename><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>{label}</name><difficult>1</difficult><bndbox>{sides}</bndbox></object></annotation>\n")


def write_idrid() -> None:
    part, training, testing = "IDRiD/A. Segmentation", "a. Training Set", "b. Testing Set"
    folders = {"MA": "1. Microaneurysms", "HE": "2. Haemorrhages", "EX": "3. Hard Exudates", "SE": "4. Soft Exudates",
               "OD": "5. Optic Disc"}
    for split, images in ((training, {"IDRiD_01": "MA EX OD", "IDRiD_02": "MA"}), (testing, {"IDRiD_55": "SE HE"})):
        for folder in folders.values():
            Path(f"{part}/2. All Segmentation Groundtruths/{split}/{folder}").mkdir(parents=True)
        for number, (name, lesions) in enumerate(images.items()):
            picture(f"{part}/1. Original Images/{split}/{name}.jpg", SIZES[0], number)
            for place, lesion in enumerate(lesions.split()):
                path = f"{part}/2. All Segmentation Groundtruths/{split}/{folders[lesion]}/{name}_{lesion}.tif"
                mask(path, SIZES[0], (4 + 3 * place, 5, 4, 2 + place))
        write(f"{part}/2. All Segmentation Groundtruths/{split}/3. Hard Exudates/.keep", "")
    for letter, split, rows in (("a", training, "IDRiD_001,3,2\nIDRiD_002,0,\n"), ("b", testing, "IDRiD_001,0,1\n")):
        for number, row in enumerate(rows.splitlines()):
            picture(f"IDRiD/B. Disease Grading/1. Original Images/{split}/{row[:9]}.jpg", SIZES[0], 3 + number)
        table = f"2. Groundtruths/{letter}. IDRiD_Disease Grading_{split[3:-4]} Labels.csv"
        write(f"IDRiD/B. Disease Grading/{table}", f"Image name,Retinopathy grade,Risk of macular edema \n{rows}")


def write_formats() -> None:
    images = [{"id": number, "file_name": FILES[number], "width": SIZES[number][0], "height": SIZES[number][1]}
              for number in (0, 1)]
    runs = {"size": [SIZES[1][1], SIZES[1][0]], "counts": [40, 30, 50, 20, SIZES[1][0] * SIZES[1][1] - 140]}
    dump("formats/coco.json", {
        "images": images, "categories": [{"id": 3, "name": "bird"}, {"id": 4, "name": "nest"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 3, "bbox": [2, 3, 9, 8], "segmentation": [[2, 3, 11, 3, 7, 11]]},
            {"id": 2, "image_id": 1, "category_id": 4, "bbox": [1, 1, 4, 4], "iscrowd": 1, "segmentation": runs},
        ],
    })
    write("formats/voc/Annotations/0.xml", voc("0.png", *SIZES[0], "cat", (3, 4, 12, 10)))
    levels = np.zeros(SIZES[0][::-1], np.uint8)
    levels[3:10, 2:12] = 8
    levels[10:12, 2:12] = 255
    save("formats/voc/SegmentationClass/0.png", levels)
    kinds = {"polygon": [[2, 2], [9, 3], [5, 10]], "rectangle": [[8, 9], [3, 2]], "circle": [[8, 8], [11, 8]],
             "point": [[4, 5]], "linestrip": [[1, 1], [5, 5], [9, 2]]}
    drawn = [{"label": f"l {kind}", "points": points, "shape_type": kind} for kind, points in kinds.items()]
    dump("formats/labelme.json", {"shapes": drawn, "imagePath": "owl\\0.png", "imageWidth": 24, "imageHeight": 16})
    regions = [{"shape_attributes": shape, "region_attributes": {"label": shape["name"], "sure": "yes"}} for shape in (
        {"name": "rect", "x": 1, "y": 2, "width": 5, "height": 6}, {"name": "circle", "cx": 8, "cy": 7, "r": 3},
        {"name": "ellipse", "cx": 8, "cy": 9, "rx": 4, "ry": 2, "theta": 0.5}, {"name": "point", "cx": 3, "cy": 3},
        {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [1, 2, 9]},
    )]
    dump("formats/via.json", {"_via_img_metadata": {"k1": {"filename": "auk/1.png", "size": 9, "regions": regions}}})
    write("formats/yolo/owl/0.txt", "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.4 0.1 0.2 0.6\n")
    write("formats/yolo/auk/1.txt", "")
    write("formats/yolo/classes.txt", "bird\nnest\n")
    trimap = np.full(SIZES[4][::-1], 2, np.uint8)
    trimap[3:12, 3:12], trimap[4:11, 4:11] = 3, 1
    save("formats/trimaps/4.png", trimap)
    dump("formats/salicon.json", {"images": images, "annotations": [
        {"id": 1, "image_id": 0, "worker_id": 5, "fixations": [[3, 4], [9, 20]]},
        {"id": 2, "image_id": 0, "worker_id": 6, "fixations": [[16, 1]]},
    ]})
    write("formats/gaze.txt", "0,24,16,3.5,4,120,9,9,250\n1,16,24,10,10,300\n")
    write("formats/points.csv", "image,x,y,user,weight,label\n"
          "owl/0.png,3,4,ann,2,eye\nauk/1.png,5,6,bob,1,\nauk/1.png,7.5,8,ann,1,\n")
    write("formats/boxes.csv", "file,x,y,width,height,label\n0.png,1,2,5,6,head\nibis/2.jpg,2,2,9,9,\n")
    lines("formats/bubbles.jsonl", [
        {"image": "owl/0", "x": 50, "y": 50, "radius": 10, "user": "ann"},
        {"image": "auk/1", "x": 20, "y": 75, "radius": 5},
    ])


def write_maps() -> None:
    """Maps, as files of each kind, and the records that name them."""
    hk("masks2map records.jsonl --size 8 --missing pass --out maps/lesions"
       " | weights --missing pass --out maps/weighed", "weighed.jsonl")
    hk("bubbles2map users.jsonl --per-annotator --size 8 --out maps/annotators", "annotated.jsonl")
    hk("masks2map records.jsonl --size 8 --missing pass --out maps/lesions.h5", "in-h5.jsonl")
    hk("masks2map records.jsonl --size 8 --missing pass --format png --out maps/png", "in-png.jsonl")
    hk("bubbles2map records.jsonl --bandwidth 3 --size 8 --missing pass --empty zeros --out maps/plain", "plain.jsonl")
    np.save("maps/zero.npy", np.zeros((8, 8), np.float32))


def write_shards() -> None:
    Path("shards").mkdir()
    hk("pack shards/plain.h5 plain.jsonl")
    hk("pack shards/weighed.h5 weighed.jsonl")
    hk("pack shards/annotated.h5 annotated.jsonl")
    hk("pack shards/pixels.h5 plain.jsonl --store pixels --size 16")
    hk("pack shards/series.h5 weighed.jsonl --shard-size 3")
    rewrite("weighed", "gzip", compression="gzip", chunks=True)
    rewrite("annotated", "shuffle", libver="latest", compression="gzip", shuffle=True, chunks=True)
    rewrite("plain", "contiguous")
    hk("sample 3 weighed.jsonl --seed 1 | pack three.h5")
    hk("unpack three.h5 --to webdataset --out tars/old.tar")
    Path("three.h5").unlink()


def rewrite(name: str, to: str, *, libver: str = "earliest", **layout: Any) -> None:
    """Copy a shard as another program would.

    In chunks, as h5repack has it, the user block is copied too, and is then that of another file. Else there is none.
    """
    block = 512 if layout else 0
    with (
        h5py.File(f"shards/{name}.h5") as old,
        h5py.File(f"shards/{to}.h5", "w", libver=libver, userblock_size=block) as new,
    ):
        new.attrs.update(old.attrs)

        def copy(path: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                chunked = layout if item.nbytes > 1_000 else {}
                new.create_dataset(path, data=item[()], dtype=item.dtype, **chunked)

        old.visititems(copy)
    with Path(f"shards/{name}.h5").open("rb") as old, Path(f"shards/{to}.h5").open("r+b") as new:
        new.write(old.read(block))


def write_runs() -> None:
    for name, line in TRAINING.items():
        hk(f"{line} trained/{name}", f"trained-{name}.json")
        Path(f"trained-{name}.json").unlink()
        Path(f"trained/{name}/last.pt").unlink()      # of two checkpoints of one kind, one is enough


def map_digests() -> dict[str, str]:
    """The float32 bytes of every map file; a row of an .h5 by its number."""
    found = {str(path): sha256(np.load(path).tobytes()) for path in sorted(Path("maps").rglob("*.npy"))}
    for path in sorted(Path("maps").rglob("*.png")):
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 65535
        found[str(path)] = sha256(values.astype("<f4").tobytes())
    for path in sorted(Path("maps").rglob("*.h5")):
        with h5py.File(path) as file:
            found |= {f"{path}#{row}": sha256(values.tobytes()) for row, values in enumerate(file["maps"])}
    return found


def digests() -> dict[str, Any]:
    shards = {}
    for name in SHARDS:
        _, stdout = run(["info", "--full", f"shards/{name}.h5"])
        shards[name] = {"content_sha256": json.loads(stdout).get("content_sha256"),
                        **describe_shard(Path(f"shards/{name}.h5"), NAMES)}
    return {"shards": shards, "maps": map_digests()}


def outputs(cases: dict[str, str]) -> dict[str, Any]:
    found = {}
    for name, pipeline in cases.items():
        found[name] = run_case(pipeline, run, NAMES)
        shutil.rmtree("out", ignore_errors=True)
        if found[name]["exit_code"]:
            print(name, found[name]["exit_code"])
    return found


def keep(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Write JSON, a line a case."""
    groups = (
        json.dumps(group) + ": {\n" + ",\n".join(
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
            for name, value in items.items()
        ) + "\n}" for group, items in found.items()
    )
    path.write_text("{\n" + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def main(folder: Path) -> None:
    folder = folder.absolute()
    data = folder / "data"
    data.mkdir(parents=True)      # never over one that is there
    os.chdir(data)
    for step in (write_photos, write_records, write_cub, write_dogs, write_idrid, write_formats, write_maps,
                 write_shards, write_runs):
        print(step.__name__)
        step()
    damage()
    keep(folder / "golden.json", digests())
    found = {"cases": outputs(CASES), "network": outputs(NETWORK_CASES)}
    found["training"] = outputs({name: f"{line} out/run" for name, line in TRAINING.items()})
    Path("damaged.h5").unlink()
    keep(folder / "outputs.json", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
