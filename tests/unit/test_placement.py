"""What a trial takes of a device, and a study of the disk."""

import shutil
import threading

import pytest

from hpsearch.errors import DiskFull
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import RESOLUTION, share_of


def test_as_many_trials_as_are_meant_to_share_a_device_fit_as_ray_counts():
    for per_device in range(1, 65):
        for whole in (1.0, 0.25):
            as_ray_counts = int(share_of(per_device, whole) * RESOLUTION + 0.5)  # its FixedPoint
            assert 0 < as_ray_counts * per_device <= whole * RESOLUTION, per_device


def test_a_quota_is_counted_while_devices_write_rename_and_remove(tmp_path):
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            (tmp_path / "3/unfinished").mkdir(parents=True, exist_ok=True)
            (tmp_path / "3/unfinished/progress.safetensors").write_bytes(b"1")
            (tmp_path / "3/unfinished/progress.safetensors").replace(tmp_path / "3/progress.safetensors")
            shutil.rmtree(tmp_path / "3")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(1500):
            Place(tmp_path, most_bytes=100).check_room()
    finally:
        over.set()
        writer.join()
    (tmp_path / "weights.safetensors").write_bytes(b"1" * 100)
    with pytest.raises(DiskFull, match="HPSEARCH_STUDY_BYTES"):
        Place(tmp_path, most_bytes=100).check_room()


def test_what_is_no_snapshot_is_left_alone(tmp_path):
    for name in ("3", ".DS_Store"):
        (tmp_path / "progress" / name).mkdir(parents=True)
    Place(tmp_path).tidy({3})
    assert [path.name for path in (tmp_path / "progress").iterdir()] == [".DS_Store"]
