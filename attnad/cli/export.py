"""The command `attnad export`."""

from pathlib import Path


def export(run: Path, model: Path, /) -> None:
    """Write a finished run as one ONNX file: image uint8 [1, 3, s, s] in, map and scores out.

    Args:
        run: Folder of a finished run.
        model: File to write, such as model.onnx. It takes RGB from 0 to 255, the whole photograph resized to the square
            with antialiasing, as attnad.load_images does; runtimes refuse other types, such as float in [0, 1]. Its
            metadata say so, and what it is: size, threshold, recipe, seed, commit.
    """
    from attnad.run.export import export_run
    from attnad.run.run import load_run
    from attnad.study.results import current_commit

    loaded = load_run(run, device="cpu")
    model.parent.mkdir(parents=True, exist_ok=True)
    export_run(loaded, model, commit=current_commit())
    print(f"{model}: {model.stat().st_size / 1e6:.1f} MB, images of {loaded.config.size} pixels")
