"""Pictures of the miniature: COCO, VQAv2, OK-VQA, GQA, and RefCOCO/+/g from REFER's pickles."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.datasets.files import write_json
from tests.tiny import TEXTS
from tests.tools.tool import run

Ids = dict[str, set[Any]]
WIDTH, HEIGHT = 64, 48
VAL2014 = (391895, 60623, 483108, 384213, 386164, 223648)  # of Karpathy's test split and of VQA's questions
TRAIN2014 = (57870, 384029)
GREY = 386164  # COCO has some pictures without colour
SCENES = ("n161313", "n235859", "n8723")  # GQA's names of its test-dev pictures
REFER_IMAGES = "images/mscoco/images/train2014"  # REFER's own place
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
SPLITS = {"unc": ("train", "val", "testA", "testB"), "umd": ("train", "val", "test")}
TRAIN_REFS, OTHER_REFS = 10, 2  # refs of a split, of two sentences each


def picture(path: Path, *, seed: int, mode: str = "RGB") -> None:
    """A JPEG of a few blocks of colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).convert(mode).save(path)


def coco_name(split: str, number: int) -> str:
    return f"{split}/COCO_{split}_{number:012d}.jpg"


def coco(data: Path) -> Ids:
    """COCO's pictures, and Karpathy's captions as LAVIS wrote them."""
    folder = data / "coco"
    for split, numbers in (("val2014", VAL2014), ("train2014", TRAIN2014)):
        for number in numbers:
            picture(folder / "images" / coco_name(split, number), seed=number, mode="L" if number == GREY else "RGB")
    rows = [{"image": coco_name("val2014", n), "caption": [TEXTS[(i + k) % 4] for k in range(5)]} for i, n in enumerate(VAL2014)]
    write_json(folder / "annotations" / "coco_karpathy_test.json", rows)
    train = [
        {"caption": TEXTS[k], "image": coco_name("train2014", n), "image_id": f"coco_{n}"} for n in TRAIN2014 for k in (0, 1)
    ]
    write_json(folder / "annotations" / "coco_karpathy_train.json", train)
    return {"coco_caption": set(VAL2014), "coco_retrieval": set(range(len(VAL2014)))}


def questions(number: int) -> list[tuple[int, str]]:
    """(question id, question) of a COCO picture; ids as VQA makes them."""
    return [(1000 * number + k, f"What color is the {thing}?") for k, thing in enumerate(("square", "lamp"))]


def write_vqa(folder: Path, names: tuple[str, str, str, str], *, numbers: tuple[int, ...], dataset: str) -> set[int]:
    """LAVIS' rows, its list of answers, and VQA's own files of questions and answers; the ids of the questions."""
    asked = [(number, key, text) for number in numbers for key, text in questions(number)]
    image_rows = [
        {"image": coco_name("val2014", number), "question_id": key, "question": text, "dataset": dataset}
        for number, key, text in asked
    ]
    write_json(folder / names[0], image_rows)
    write_json(folder / names[1], ["red", "blue", "white", "2", "a white cube"])
    about = {"info": {"version": "2.0"}, "license": {"name": "x"}, "data_type": "mscoco", "data_subtype": "val2014"}
    listed = [{"image_id": number, "question_id": key, "question": text} for number, key, text in asked]
    write_json(folder / names[2], {**about, "task_type": "Open-Ended", "questions": listed})
    answers = [
        {"answer": "red" if n % 3 else "white", "raw_answer": "red", "answer_confidence": "yes", "answer_id": n}
        for n in range(1, 11)
    ]
    annotations = [
        {
            **{"image_id": number, "question_id": key, "question_type": "what color is the", "answer_type": "other"},
            **{"multiple_choice_answer": "red", "answers": answers},
        }
        for number, key, _ in asked
    ]
    write_json(folder / names[3], {**about, "annotations": annotations})
    return {key for _, key, _ in asked}


def vqav2(data: Path) -> Ids:
    names = (
        *("vqa_val_eval.json", "answer_list.json"),
        *("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    )
    return {"coco_vqa": write_vqa(data / "coco" / "annotations", names, numbers=VAL2014, dataset="vqa")}


def okvqa(data: Path) -> Ids:
    names = (
        *("vqa_val_eval.json", "answer_list.json"),
        *("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    )
    return {"ok_vqa": write_vqa(data / "okvqa" / "annotations", names, numbers=VAL2014[:3], dataset="okvqa")}


def gqa(data: Path) -> Ids:
    """The balanced test-dev questions as they are released, by id."""
    rows = {}
    for number, scene in enumerate(SCENES):
        picture(data / "gqa" / "images" / f"{scene}.jpg", seed=number)
        for k, (text, answer) in enumerate((("Is the lamp white?", "no"), ("What is on the left?", "square"))):
            rows[f"20{number}307{k}"] = {
                **{"imageId": scene, "question": text, "answer": answer, "fullAnswer": f"It is {answer}.", "isBalanced": True},
                **{"groups": {"global": None, "local": "13-lamp"}, "types": {"detailed": "x"}, "semantic": [], "annotations": {}},
            }
    write_json(data / "gqa" / "annotations" / "testdev_balanced_questions.json", rows)
    return {"gqa": set(rows)}


# REFER


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Texts as the byte strings of Python 2, which wrote REFER's pickles."""

    dispatch = {**pickle._Pickler.dispatch}  # type: ignore[attr-defined]

    def save_text(self, text: str) -> None:
        content = text.encode()
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = save_text


def write_refs(path: Path, refs: list[dict[str, Any]]) -> None:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(refs)
    path.write_bytes(stream.getvalue())


def make_refs(dataset: str, *, first: int) -> tuple[list[dict[str, Any]], dict[str, Any], Ids]:
    """Refs of every split, COCO's instances of them, and the ids of each split's regions. Two refs share a picture, and no
    picture is of two splits."""
    refs: list[dict[str, Any]] = []
    images, annotations = {}, []
    regions: Ids = {}
    for split in SPLITS[SPLIT_BY[dataset]]:
        for number in range(TRAIN_REFS if split == "train" else OTHER_REFS):
            ref_id = first + len(refs)
            image_id = 100 * first + ref_id // 2
            name = f"COCO_train2014_{image_id:012d}"
            x, y, w, h = 2.5 + 6 * (number % 2), 3.0, 21.25, 17.8
            images[image_id] = {"id": image_id, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1}
            annotations.append(
                {
                    **{"id": 9000 + ref_id, "image_id": image_id, "category_id": 1, "bbox": [x, y, w, h]},
                    **{"area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h]]},
                }
            )
            said = [TEXTS[(ref_id + k) % 4] for k in range(2)]
            sentences = [
                {"sent": text, "raw": text.capitalize(), "sent_id": 2 * ref_id + k, "tokens": text.split()}
                for k, text in enumerate(said)
            ]
            refs.append(
                {
                    **{"ref_id": ref_id, "ann_id": 9000 + ref_id, "image_id": image_id, "category_id": 1, "split": split},
                    **{"file_name": f"{name}_{number}.jpg", "sentences": sentences, "sent_ids": [2 * ref_id, 2 * ref_id + 1]},
                }
            )
            regions.setdefault(split, set()).add(f"{image_id}_box_{int(x)}_{int(y)}_{int(w)}_{int(h)}")
    return (
        refs,
        {"images": list(images.values()), "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]},
        regions,
    )


def refer(data: Path) -> Ids:
    """REFER's downloads, converted by tools/convert_refer.py."""
    root, ids = data / "Refer", {}
    for place, (dataset, split_by) in enumerate(SPLIT_BY.items()):
        refs, instances, regions = make_refs(dataset, first=100 * (place + 1))
        write_json(root / dataset / "instances.json", instances)
        write_refs(root / dataset / f"refs({split_by}).p", refs)
        for image in instances["images"]:
            picture(root / REFER_IMAGES / image["file_name"], seed=image["id"])
        assert (
            run("convert_refer", "--refs", root / dataset / f"refs({split_by}).p", "--images", root / "images", "--strict") == 0
        )
        ids[dataset] = regions["val"] if dataset == "refcocog" else regions["testA"] | regions["testB"]  # as the runs ask
    return ids


def crops(data: Path) -> Ids:
    """RefCOCO's test regions cut out; an id says a box by its corners."""
    ann, out = data / "Refer" / "refcoco" / "Refcoco_test.json", data / "RefCOCO_crop_test"
    tool = "prepare_blip2_zeroshot_RefcocoCrop"
    assert run(tool, "-a", ann, "-m", data / "Refer" / "images", "-o", out, "--workers", "1") == 0
    return {"refcoco_crop_caption": {path.stem for path in (out / "images").iterdir()}}


def shards(data: Path) -> Ids:
    """Regions and captions in shards, as tools/make_shards.py writes them of plain files."""
    refer, coco_folder = data / "Refer", data / "coco"
    captions = coco_folder / "annotations" / "coco_karpathy_train.json"
    sources = {"regions": (refer / "refcoco" / "Refcoco_train.json", refer), "captions": (captions, coco_folder)}
    for kind, (rows, folder) in sources.items():
        out = data / "shards" / kind
        words = ["write", "-a", rows, "--images", folder / "images", "-o", out, "--kind", kind, "--samples-per-shard", "8"]
        assert run("make_shards", *words, "--workers", "1") == 0
    return {}
