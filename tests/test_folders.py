"""Which folder is meant, and what is refused in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pictures import refused, save
from PIL import Image

from attnad import data
from attnad.data import load_test, load_train
from attnad.data.folders import walk

pytestmark = pytest.mark.usefixtures("no_user_data")


# --- which folder ----------------------------------------------------------------------------------------------------


def test_plain_folder(tmp_path):
    for i in (2, 0, 1):
        save(tmp_path / f"photos/{i}.jpg")
    folder = str(tmp_path / "photos")
    assert load_train(folder, size=64).names == ("0.jpg", "1.jpg", "2.jpg")
    assert data.classes(folder) == ()
    with refused("photos", "test/<defect>", "ground_truth"):
        load_test(folder, size=64)
    with refused("photos", "leave --normal-class"):
        load_train(folder, size=64, normal_class="good")
    save(tmp_path / "photos/inner/0.jpg")
    with refused("photos", "inner", "train"):
        load_train(folder, size=64)


def test_a_folder_of_data_sets_is_not_taken_for_normal_images(mvtec):
    with refused("holds folders", str(mvtec)):
        load_train(str(mvtec.parent), size=32)


def test_relative_to_root_and_to_the_current_folder(mvtec, monkeypatch):
    assert len(load_train("cap", size=32, root=mvtec.parent).images) == 4
    monkeypatch.setenv("ATTNAD_DATA", str(mvtec.parent))
    assert len(load_train("cap", size=32).images) == 4
    save(Path("cap/0.png"))
    with refused("cap", "full path"):
        load_train("cap", size=32)
    monkeypatch.setenv("ATTNAD_DATA", "nowhere")
    assert len(load_train("cap", size=32).images) == 1
    assert len(load_train("./cap", size=32).images) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [("texture", "'textures'"), ("cifar-10", "'cifar10'"), ("capp", "'cap'"), ("", ""), ("x" * 5000, ""), ("a\0b", "")],
)
def test_unknown_name(mvtec, name, near):
    with refused("'textures', 'cifar10'", near):
        load_train(name, size=32, root=mvtec.parent)


def test_a_file_instead_of_a_folder(mvtec):
    with refused("000.png", "is a file"):
        load_train(str(mvtec / "train/good/000.png"), size=32)


def test_ignored_files_and_nothing_else(mvtec):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "README.md", "license.txt", "LICENSE", ".hidden.png"):
        (mvtec / "train/good" / name).write_bytes(b"\0text")
    (mvtec / "train/.ipynb_checkpoints").mkdir()
    assert len(load_train(str(mvtec), size=32).images) == 4
    (mvtec / "train/good/notes.txt").write_text("text")
    with refused("notes.txt", "no image", "remove it"):
        load_train(str(mvtec), size=32)


def test_broken_link(mvtec):
    (mvtec / "train/good/link.png").symlink_to("nowhere.png")
    with refused("link.png", "broken link"):
        load_train(str(mvtec), size=32)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(mvtec):
    (mvtec / "train/good/001.png").chmod(0)
    with refused("001.png", "permission"):
        load_train(str(mvtec), size=32)


def test_no_permission_from_the_system(mvtec, monkeypatch):
    """The same for a user who may read everything."""

    def forbid(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", forbid)
        with refused("000.png", "permission"):
            load_train(str(mvtec), size=32)
    monkeypatch.setattr(Path, "iterdir", forbid)
    with refused("cap/train", "cannot be listed", "permissions"):
        load_train(str(mvtec), size=32)


def test_looking_takes_as_long_as_there_are_files(tmp_path):
    """Eight times as many files take about eight times as long, by the processor's time: not sixty-four times."""
    times = []
    for n in (500, 4_000):
        folder = tmp_path / str(n)
        folder.mkdir()
        for i in range(n):
            (folder / f"{i:05d}.png").touch()
        tries = []
        for _ in range(5):
            start = time.process_time()
            files, _ = walk(folder)
            tries.append(time.process_time() - start)
        assert len(files) == n
        times.append(min(tries))
    assert times[1] < 24 * times[0]
