"""The command `attnad figure`."""

import io
import textwrap
from pathlib import Path

from attnad.cli.flags import DataRoot, Device
from attnad.errors import SettingError


def figure(
    runs: tuple[Path, ...],
    /,
    *,
    out: Path,
    data: str | None = None,
    names: tuple[str, ...] = (),
    reconstruction: bool = False,
    columns: int = 8,
    seed: int = 0,
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Draw test images, anomaly maps and ground truth, as the paper's figures 4 to 7 do, of one run or several.

    Args:
        runs: Folders of finished runs on one data set, such as those of table 4's three rows.
        out: Picture to write: PNG, or what else the name's ending says (PDF, SVG).
        data: Test images; by default those of the data set that the runs were trained on.
        names: What to call the runs; by default by their folders.
        reconstruction: Show the reconstructed image too.
        columns: Images: half of them good, the others from all kinds of anomalies in turn.
        seed: Seed of the choice of images. Scores play no part in it.
    """
    from attnad.data import load_test
    from attnad.report.plotting import choose, gallery, overlay
    from attnad.run.run import data_of, load_run
    from attnad.training.storage import write_atomically

    loaded = [load_run(folder, device=device) for folder in runs]
    names = names or tuple(folder.resolve().name for folder in runs)
    if not len(runs) == len(set(names)) == len(names) > 0:
        raise SettingError(f"{len(runs)} runs, called {', '.join(names)}; give one or more, and --names, no name twice")
    for run in loaded:
        run.check_whole()
    config = loaded[0].config
    for folder, run in zip(runs, loaded, strict=True):
        if any(getattr(run.config, name) != getattr(config, name) for name in ("data", "normal_class", "size")):
            raise SettingError(f"{folder}: its data or size differ from those of {runs[0]}; draw it by itself")
    data = data or data_of(loaded[0], runs[0], data_root)
    test = load_test(data, size=config.size, normal_class=config.normal_class, root=data_root)
    try:
        drawn = [i for i, known in enumerate(test.has_mask.tolist()) if known or not test.has_mask.any()]
        chosen = [drawn[i] for i in choose([test.kinds[i] for i in drawn], columns, seed=seed)]
        rows = {"image": test.images[chosen]}
        for name, run in zip(names, loaded, strict=True):
            scores, label = run.score(rows["image"]), f"\n{textwrap.fill(name, 18)}" if len(runs) > 1 else ""
            if scores.maps is None:
                raise SettingError(f"{name} judges whole images and draws no maps; leave it out")
            if reconstruction:
                if scores.x_re is None:
                    raise SettingError(f"{name} reconstructs no images; leave it or --reconstruction out")
                rows[f"reconstruction{label}"] = scores.x_re
            rows[f"anomaly map{label}"] = scores.maps.clamp(0, 1)
        if len(runs) == 1:
            rows["overlay"] = overlay(rows["image"], rows["anomaly map"])
        if test.has_mask.any():
            rows["ground truth"] = test.masks[chosen]
        encoders = {run.config.encoder for run in loaded}
        shared = next(iter(encoders)) if len(encoders) == 1 else None
        title = filter(None, [config.data, config.normal_class, shared, f"{config.size} px"])
        titles = [test.kinds[i].replace("/", "\n") for i in chosen]
        picture = gallery(rows, titles, title=", ".join(title), label="anomaly map: 0 normal, 1 anomalous")
        content = io.BytesIO()
        picture.savefig(content, format=out.suffix.lstrip(".") or "png")
    except ValueError as error:
        raise SettingError(f"no figure: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content.getvalue())
    print(f"{len(chosen)} images: {out}")
