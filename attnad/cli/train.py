"""The command `attnad train`."""

from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import Annotated

import tyro

from attnad.cli.flags import DataRoot, Device
from attnad.config import DetectorConfig
from attnad.errors import SettingError


def train(
    config: Annotated[DetectorConfig, tyro.conf.arg(name="")],
    *,
    device: Device = "auto",
    data_root: DataRoot = None,
    out: Path | None = None,
    region: Path | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> None:
    """Train on normal images only. The same command again goes on where it was stopped.

    Args:
        out: Folder of the run; by default runs/DATA[-CLASS]-RECIPE-seedN.
        region: A mask: white is judged, and what is black counts as normal. For image scores that are made of the map.
        tile: Cut photographs into square tiles of so many pixels, each an image of the run's size; attnad score cuts
            them alike.
        overlap: Pixels that neighbouring tiles share at least; by default an eighth of a tile.
    """
    from attnad.data import has_test
    from attnad.data.tiles import Tiles
    from attnad.metrics import expected_false_alarms
    from attnad.run.run import train_run
    from attnad.run.self_check import ENOUGH, describe, learned_enough

    name = "-".join(filter(None, [Path(config.data).name, config.normal_class, config.recipe, f"seed{config.seed}"]))
    out = out or Path("runs") / name
    if tile is None and overlap is not None:
        raise SettingError(f"--overlap {overlap} is of tiles; give --tile too")
    tiles = None if tile is None else Tiles(tile, tile // 8 if overlap is None else overlap)
    try:
        run = train_run(config, out, device=device, data_root=data_root, region=region, tiles=tiles)
    except KeyboardInterrupt:
        remedy = f"run the same command again to go on from the last saved epoch in {out}"
        raise KeyboardInterrupt(remedy) from None
    seconds = sum(run.facts["seconds"].values())
    print(f"Trained on {run.facts['n_train']} normal images in {seconds:.0f} s on {run.facts['device']}: {out}")
    if copies := run.facts.get("n_copies"):
        print(
            f"{copies} of the {run.facts['n_normal']} images are nearly the same as another: copies teach nothing new. "
            "None is both learned from and held out"
        )
    if run.facts.get("registered"):
        print(
            "They show one part: each photograph is laid as the others lie before it is judged (not with --no-register)"
        )
    held_out = len(run.facts.get("held_out_scores", ()))  # none in a run of an earlier version
    if held_out:
        left_out = "calibrated_on" in run.facts
        others = f" ({run.facts['calibrated_on']})" if left_out else ""
        rate = max(0.05, 1 / (held_out + 1)) if left_out else expected_false_alarms(held_out)
        print(
            f"The threshold comes from {held_out} image{'s' * (held_out > 1)} that the detector was not fitted to"
            f"{others}: expect it to flag about one good image in {round(1 / rate)}"
        )
    check = run.facts.get("synthetic")  # not in a run of an earlier version
    if check:
        print(describe(check))
    if check and not learned_enough(check):
        names = {f.name for f in fields(config)}
        flag = "--attention.epochs" if "attention" in names else "--epochs" if "epochs" in names else ""
        longer = f" longer ({flag})," if flag else ""
        other = "" if config.recipe == "strong" else ", or take --recipe strong"
        print(
            f"That is too little (an AUROC below {ENOUGH}): it has not learned what is normal, and its scores and maps "
            f"carry next to nothing. Train{longer} on more photographs{other}"
        )
    labelled = tiles is None and has_test(config.data, config.normal_class, data_root)
    run_folder, root = quote(str(out)), f" --data-root {quote(str(data_root))}" if data_root else ""
    print(f"Next: attnad {f'evaluate {run_folder}{root}' if labelled else f'score {run_folder} FOLDER --out report'}")
