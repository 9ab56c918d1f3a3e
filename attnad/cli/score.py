"""The command `attnad score`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attnad.cli.flags import Device
from attnad.errors import SettingError

if TYPE_CHECKING:
    from attnad.run.run import Run


def score(
    run: Path,
    images: tuple[Path, ...],
    /,
    *,
    out: Path,
    threshold: float | None = None,
    false_alarms: float | None = None,
    expected_false: float | None = None,
    maps: Literal["npy", "tiff"] | None = None,
    follow: bool = False,
    device: Device = "auto",
) -> None:
    """Score images of your own: scores.csv, a heat map for each, and report.html to look at.

    Args:
        run: Folder of a finished run.
        images: Image files, or folders of images.
        out: Folder to write to.
        threshold: Flag images that score above this; by default the run's threshold, from its held-out normal images.
        false_alarms: Or the rate of normal images that may be flagged, such as 0.01: the threshold that the scores of
            training images give for it which the detector was not fitted to. Where they are too few, it is refused.
        expected_false: Or the share of normal images among those that are flagged, such as 0.1, on average: by the
            p-values of all images together (Benjamini-Hochberg). The threshold is then the highest score that is not
            flagged.
        maps: Write the maps' values too, float32 in [0, 1] at the photograph's size: for NumPy, or as TIFF.
        follow: Go on with images as they arrive in the one folder that is given, until Ctrl-C, which writes the report.
    """
    import torch

    from attnad.report.follow import follow as follow_folder
    from attnad.report.scoring import score_files
    from attnad.run.run import load_run
    from attnad.run.self_check import describe

    loaded = load_run(run, device=device)
    config = loaded.config
    above, threshold_from = _threshold(loaded, threshold, false_alarms, expected_false)
    if follow and expected_false is not None:
        raise SettingError("--expected-false is of images that are judged together; with --follow use --false-alarms")
    notes = {
        "Run": str(run),
        "Trained on": f"{loaded.facts['n_train']} normal images of {config.data}",
        "Image score": config.image_score,
        "Encoder": config.encoder,
        "Seed": str(config.seed),
        "Threshold": threshold_from,
    }
    if check := loaded.facts.get("synthetic"):  # not in a run of an earlier version
        notes["Check without labels"] = describe(check)
    if loaded.region is not None:
        notes["Region"] = f"{loaded.region.facts()['share']:.0%} of the image; the rest counts as normal"
    if loaded.tiles is not None:
        notes["Tiles"] = f"of {loaded.tiles.tile} pixels; neighbours share {loaded.tiles.overlap} or more"
    blank = torch.zeros(1, 3, config.size, config.size, dtype=torch.uint8)
    if loaded.score(blank).maps is None:
        raise SettingError(f"{run} judges whole images and draws no maps for a report; train it on patches")
    for folder in filter(Path.is_dir, images):
        if out.resolve().is_relative_to(folder.resolve()):
            raise SettingError(f"{out} lies in {folder}, and its heat maps would be scored; choose another --out")
    if not loaded.calibration:
        print(f"{run} was made by an earlier version, and has nothing to take p-values from; train again to have them")
    if not follow:
        score_files(loaded, images, out, threshold=above, notes=notes, numbers=maps, expected_false=expected_false)
        return
    if len(images) != 1:
        raise SettingError(f"--follow takes one folder, and {len(images)} paths are given; name one")
    follow_folder(loaded, *images, out, threshold=above, name=str(run.resolve()), notes=notes, numbers=maps)


def _threshold(run: Run, given: float | None, rate: float | None, expected_false: float | None) -> tuple[float, str]:
    """The threshold that is wanted, and where it comes from; by `expected_false`, until all images are scored."""
    from attnad.run.calibration import check_rate

    named = {"--threshold": given, "--false-alarms": rate, "--expected-false": expected_false}
    several = [f"{flag} {value}" for flag, value in named.items() if value is not None]
    if len(several) > 1:
        raise SettingError(f"{' and '.join(several)} each say where to flag; give one of them")
    if given is not None:
        if not math.isfinite(given):
            raise SettingError(f"--threshold {given}: give a finite number")
        return given, "given on the command line"
    by = f"by {len(run.calibration)} normal images, each judged by a detector that was not fitted to it"
    if rate is not None:
        return run.threshold_for(rate), f"for false alarms at a rate of {rate}, {by}"
    if expected_false is not None:
        check_rate(run.calibration, expected_false, "an expected share of false ones", share=run.calibrating)
        return run.facts["threshold"], f"for a share of {expected_false} normal ones among the flagged images, {by}"
    return run.facts["threshold"], run.facts["threshold_from"]
