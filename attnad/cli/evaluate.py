"""The command `attnad evaluate`."""

import math
from json import dumps
from pathlib import Path
from typing import Any

from attnad.cli.flags import DataRoot, Device
from attnad.errors import shown


def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    normal_class: str | None = None,
    json: Path | None = None,
    device: Device = "auto",
    data_root: DataRoot = None,
) -> None:
    """Score a run's test images and print every metric. Higher scores mean more anomalous.

    Args:
        run: Folder of a finished run.
        data: Test images; by default those of the data set that the run was trained on.
        normal_class: The class that is normal there; by default the run's.
        json: Write the metrics to this file too.
    """
    from attnad.data import load_test
    from attnad.run.run import data_of, evaluate_run, load_run
    from attnad.training.storage import write_atomically

    loaded = load_run(run, device=device)
    data = data or data_of(loaded, run, data_root)
    normal_class = normal_class or loaded.config.normal_class
    test = load_test(data, size=loaded.config.size, normal_class=normal_class, root=data_root)
    result = {"run": str(run), "data": data, "normal_class": normal_class, **evaluate_run(loaded, test)}
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json, dumps(result, indent=2) + "\n")
    print(_table(loaded.config, result))


def _figure(value: Any) -> str:
    return "-" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.3f}"


def _table(config: Any, result: dict[str, Any]) -> str:
    from attnad.metrics import METRICS

    lines = [
        f"{shown(result['data'])}: {result['n']} images, {result['n_pixel_images']} with known masks; "
        f"encoder {result['encoder']}, {config.size} px, seed {config.seed}",
        "",
    ]
    lines += [f"{name:<20} {_figure(result[name])}" for name in METRICS]
    lines += ["", f"image AUROC by score (the recipe's own is {result['image_score']})"]
    lines += [f"  {name:<18} {_figure(value)}" for name, value in result["image_auroc_by_score"].items()]
    lines += ["", f"{'by kind':<20} {'n':>5}  image  pixel AUROC"]
    for kind, figures in result["by_kind"].items():
        image, pixel = _figure(figures["image_auroc"]), _figure(figures["pixel_auroc"])
        lines.append(f"  {shown(kind):<18} {figures['n']:>5}  {image}  {pixel}")
    return "\n".join(lines)
