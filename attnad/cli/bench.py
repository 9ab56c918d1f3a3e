"""The command `attnad bench`."""

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Literal

from attnad.cli.flags import Device
from attnad.config import EncoderName, paper_recipe
from attnad.errors import SettingError


def bench(
    *,
    recipe: Literal["quick", "paper"] = "quick",
    encoder: EncoderName | None = None,
    size: int = 64,
    images: int = 256,
    epochs: int = 3,
    workers: int = 2,
    json: Path | None = None,
    device: Device = "auto",
) -> None:
    """Measure training, scoring and memory on this machine, beside the usual pipeline of the same models.

    Args:
        recipe: Where the values of the models and of training come from.
        encoder: Another encoder than the recipe's.
        size: Side of the images, in pixels: crops of the embedded textures.
        images: Images in an epoch, up to 512.
        epochs: Epochs that count, after one that does not.
        workers: Processes that load images for the usual pipeline; 0 loads them in its own.
        json: Write what is measured to this file too.
    """
    from attnad.data import load_train
    from attnad.study import bench as measuring
    from attnad.train import pick_device
    from attnad.training.storage import write_atomically

    config = replace(paper_recipe(recipe, "textures"), size=size)
    if encoder:
        config = replace(config, attention=replace(config.attention, encoder=encoder))
    crops = load_train("textures", size=size).images[: max(0, images)]
    batch = max(config.attention.batch, config.adgan.batch)
    if len(crops) < batch or epochs < 1:
        raise SettingError(f"--images {images}, --epochs {epochs}: give {batch} or more, and 1 or more")
    result = measuring.bench(config, crops, device=pick_device(device), epochs=epochs, workers=workers)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json, dumps(result, indent=2) + "\n")
    print(measuring.table(result))
