"""Objaverse's objects and Cap3D's captions to the files that the builder pointcloud_caption reads.

    python tools/prepare_objaverse.py clouds -i objaverse/glbs -o objaverse_pc_parallel
    python tools/prepare_objaverse.py captions -i Cap3D_automated_Objaverse_full.csv -o Cap3D_automated_Objaverse_test.txt \\
        --ids test_ids.txt --clouds objaverse_pc_parallel

clouds: each .glb, .gltf, .obj, .ply, .off and .stl file in a folder and below becomes <id>/<id>_8192.npz with `arr_0`
[points, 3]: points on the surface by area (or of a file without faces, some of its points), in the unit sphere. Many at
once; it can be stopped and run again; draws depend on the seed and the object's id alone. An object that cannot be
converted is named and counted, the others go on, and the exit code is 1. Needs trimesh (pip install "lavis-regionblip[meshes]").

captions: the csv table becomes lines <id>,<caption>, of all objects or of those in --ids and not in --without.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from lavis.datasets.convert import cap3d, meshes
from lavis.datasets.convert.batch import available_cores, check_settings, run_batch
from lavis.datasets.convert.problems import Problems


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    usual = meshes.Sampling()

    clouds = commands.add_parser("clouds", help="meshes to clouds")
    clouds.add_argument("-i", "--input", required=True, type=Path, help="the folder of the files, and folders in it")
    clouds.add_argument("-o", "--output", required=True, type=Path, help="the folder for the clouds")
    clouds.add_argument("--points", type=int, default=usual.points, help="points of a cloud (default: %(default)s)")
    clouds.add_argument("--method", choices=meshes.METHODS, default=usual.method, help="farthest: evenly spread, slower")
    clouds.add_argument("--color", action="store_true", help="[points, 6]: red, green and blue of 0 to 1 behind x, y, z")
    clouds.add_argument("--seed", type=int, default=usual.seed, help="of the draws (default: %(default)s)")
    clouds.add_argument("--ids-are-folders", action="store_true", help="the id is the name of a file's folder, not the file's")
    clouds.add_argument("--workers", type=int, default=available_cores(), help="processes (default: all cores)")
    clouds.add_argument("--again", action="store_true", help="convert what is there already once more")

    captions = commands.add_parser("captions", help="Cap3D's csv to lines")
    captions.add_argument("-i", "--input", required=True, type=Path, help="Cap3D_automated_Objaverse_full.csv")
    captions.add_argument("-o", "--output", required=True, type=Path, help="the text file to write")
    captions.add_argument("--ids", type=Path, help="only these objects: a file with an id per line")
    captions.add_argument("--without", type=Path, help="not these objects: a file with an id per line")
    captions.add_argument("--clouds", type=Path, help="the folder of the clouds: name objects that have none there")
    captions.add_argument("--strict", action="store_true", help="write nothing and fail where anything is wrong")
    return parser.parse_args(arguments)


def make_clouds(given: argparse.Namespace) -> int:
    sampling = meshes.Sampling(points=given.points, method=given.method, color=given.color, seed=given.seed)
    objects, problems = meshes.find_objects(given.input, by_folder=given.ids_are_folders)
    check_settings(given.output, "prepare_objaverse", dataclasses.asdict(sampling))
    jobs = meshes.jobs(objects, given.output, sampling)
    report = run_batch(jobs, meshes.prepare, done=meshes.is_prepared, what="objects", workers=given.workers, again=given.again)
    named_in = report.failed.write(given.output / "prepare_objaverse_failed.txt")
    for line in [*problems.lines(), *report.lines("objects")]:
        print(line)
    if named_in:
        print(f"each of them: {named_in}")
    return report.exit_code


def make_captions(given: argparse.Namespace) -> int:
    problems = Problems()
    rows = cap3d.read_captions(given.input, problems)
    only = cap3d.read_ids(given.ids) if given.ids else None
    without = cap3d.read_ids(given.without) if given.without else ()
    kept = cap3d.select(rows, problems, only=only, without=without)
    if given.clouds:
        for object_id in dict.fromkeys(object_id for object_id, _ in kept):
            if not meshes.Job(object_id, given.clouds, given.clouds, meshes.Sampling()).target.is_file():
                problems.add("object without a cloud, kept", object_id)
    print(f"{given.input}: {len(rows)} captions, {len(kept)} of them chosen, {len(problems)} problems")
    for line in problems.lines():
        print(f"problem: {line}")
    named_in = problems.write(given.output.with_name(f"{given.output.stem}_problems.txt"))
    if named_in:
        print(f"each of them: {named_in}")
    if given.strict and len(problems):
        print("error: nothing is written (--strict)")
        return 1
    cap3d.write_lines(kept, given.output)
    print(f"{given.output}: {len(kept)} captions of {len({object_id for object_id, _ in kept})} objects")
    return 0


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    try:
        return make_clouds(given) if given.command == "clouds" else make_captions(given)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
