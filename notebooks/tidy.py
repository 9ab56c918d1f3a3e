"""After `make notebooks`: tidy the chapters, and take the README's picture out.

Dropped are progress bars, time stamps and the state of widgets: their pictures
stand until a reader runs them.
"""

import base64
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

HERE = Path(__file__).parent
for path in HERE.glob("*.ipynb"):
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr"
            ]
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
            for output in cell.outputs:
                output.get("data", {}).pop(
                    "application/vnd.jupyter.widget-view+json", None
                )
        if path.stem == "00_tour" and cell.id == "maps":
            picture = next(
                o.data["image/png"]
                for o in cell.outputs
                if "image/png" in o.get("data", {})
            )
            (HERE.parent / "book" / "figures" / "tour_maps.png").write_bytes(
                base64.b64decode(picture)
            )
    nbformat.write(notebook, path)
