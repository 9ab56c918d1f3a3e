"""Put one mistake after the other into a copy of the package, and see that the unit tests notice each.

    python tests/mutants.py            all of them; minutes
    python tests/mutants.py real pair  those whose description holds these words

Ends with status 1 where a mistake survives, or where the tests fail without one. Not collected by pytest: the weekly
workflow runs it, and whoever changes a loss, a step or a score.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A mistake: what it is, in which file of the package, the text it takes the place of, and who should notice."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


LOSSES, STEPS, MODELS = "tests/test_losses.py", "tests/test_steps.py", "tests/test_models.py"
LAID, LEFT = "tests/test_registration.py", "tests/test_strong.py"
GRAPH, DCGAN = "tests/test_graph.py", "tests/test_dcgan.py"
AUGMENT, SCORES = "tests/test_augmentations.py tests/test_synthesize.py", "tests/test_run.py"

MUTANTS = [
    Mutant("wrong real pair in eq. (2)", "train.py", "pair(x_ano, a_ano)", "pair(x_ano, a_nor)", STEPS),
    Mutant("wrong real pair in eq. (1)", "train.py", "pair(x, a_nor)", "pair(x_re[:n].detach(), a_nor)", STEPS),
    Mutant("fake pair of the input", "train.py", "fake = pair(x_re, a_gen)", "fake = pair(both, a_gen)", STEPS),
    Mutant("D1's gradient reaches G1", "train.py", "[real, fake.detach()]", "[real, fake]", STEPS),
    Mutant("games swapped", "train.py", "d_real[:n], d_fake[:n]", "d_real[n:], d_fake[:n]", STEPS),
    Mutant("weights in another order", "train.py", "(stage.adv_ano_weight, stage.adv_weight,",
           "(stage.adv_weight, stage.adv_ano_weight,", STEPS),
    Mutant("anomalies always rebuilt", "train.py", "2 * n if stage.reconstruct_anomalies else n", "2 * n", STEPS),
    Mutant("KL weight lost", "train.py", ", kl_weight=stage.kl_weight", "", STEPS),
    Mutant("target of the map turned round", "train.py", "attention_loss(a_gen[:n], a_nor, a_gen[n:], a_ano)",
           "attention_loss(a_gen[:n], a_nor, a_gen[n:], 1 - a_ano)", STEPS),
    Mutant("D1 stays frozen", "train.py", "discriminator.requires_grad_(True)\n        l_adv, l_adv_ano",
           "l_adv, l_adv_ano", STEPS),
    Mutant("maps of other images", "train.py", "maps[chosen], anomalous", "maps[: len(x)], anomalous", STEPS),
    Mutant("the GAN's last weights score", "detectors/dcgan.py", "-self.average(x)", "-self.discriminator(x)", DCGAN),
    Mutant("the GAN draws few real anomalies", "detectors/dcgan.py", "every[chosen[", "every[chosen[:9][", DCGAN),
    Mutant("a tuned encoder at the full rate", "detectors/map.py", 'self.config.tune if part == "encoder" else 1.0',
           "1.0", "tests/test_map.py"),
    Mutant("fakes of the judge are real", "train.py", "adversarial_loss(logits[0], fake) for",
           "adversarial_loss(fake, logits[0]) for", STEPS),
    Mutant("average taken before the step", "train.py",
           "    optimizer_d.step()\n    average.update_parameters(discriminator_of(adgan))",
           "    average.update_parameters(discriminator_of(adgan))\n    optimizer_d.step()", STEPS),
    Mutant("G2 judged on the real features", "train.py", "d_fake = adgan.discriminator(f_gen)",
           "d_fake = adgan.discriminator(f_nor)", STEPS),
    Mutant("no weight on G2's reconstruction", "train.py", "stage.reconstruction_weight * l_r", "l_r", STEPS),
    Mutant("recording draws from the run's generator", "training/graph.py", "self.generator.set_state(drawn)",
           "pass", GRAPH),
    Mutant("recording trains", "training/graph.py", "value.copy_(before[name]) if name in before else",
           "name in before or", GRAPH),
    Mutant("recording leaves momentum", "training/graph.py", "else value.zero_()", "else value", GRAPH),
    Mutant("average that starts at the first weights", "train.py", "first = self.n_averaged == 0",
           "first = self.n_averaged < 0", STEPS),
    Mutant("a look at a value in the step", "train.py", "l_att = attention_loss(",
           "l_g = l_g if l_g > 0 else l_g\n    l_att = attention_loss(", GRAPH),
    Mutant("sign of the fake", "losses.py", "- softplus(fake_logits).mean()",
           "- softplus(-fake_logits).mean()", LOSSES),
    Mutant("saturating generator", "losses.py", "return softplus(-fake_logits).mean()",
           "return -softplus(fake_logits).mean()", LOSSES),
    Mutant("half of the likelihood", "losses.py", "0.5 * (x - x_re).square()", "(x - x_re).square()", LOSSES),
    Mutant("KL with the standard deviation", "losses.py", "log_variance.exp() - 1",
           "(log_variance / 2).exp() - 1", LOSSES),
    Mutant("eq. (6) without its map", "losses.py", "return f_img * torch.nn", "return f_img + 0 * torch.nn", LOSSES),
    Mutant("noise scaled by the variance", "models.py", "(0.5 * log_variance).exp()", "log_variance.exp()", MODELS),
    Mutant("frozen statistics that move", "models.py", "self.encoder.eval()  #", "self.encoder.train()  #", MODELS),
    Mutant("map of the rectangle turned round", "augmentations.py", "filling, x), 1 - inside",
           "filling, x), inside", AUGMENT),
    Mutant("a rotation by nothing", "augmentations.py", "torch.randint(1, 4,", "torch.randint(0, 4,", AUGMENT),
    Mutant("hue in the wrong unit", "augmentations.py", "sixths + 6 * turns", "sixths + turns", AUGMENT),
    Mutant("map of normality as score", "score.py", "maps = 1 - a_gen[:, 0]", "maps = a_gen[:, 0]", SCORES),
    Mutant("D2's sign", "score.py", "(-d2, maps.mean", "(d2, maps.mean", SCORES),
    Mutant("reconstruction against itself", "score.py", "(x - x_re).square()", "(x_re - x_re).square()", SCORES),
    Mutant("a map stays in the pose of all", "detectors/strong.py", "maps = as_photographed(maps, poses)", "pass",
           LAID),
    Mutant("the turn goes the other way", "features/registration.py", "[cos, sin, right, -sin, cos, down]",
           "[cos, -sin, right, sin, cos, down]", LAID),
    Mutant("what lies right is resampled", "features/registration.py", "> BETTER * (1 - unmoved)", "> 9", LAID),
    Mutant("surfaces are laid", "features/registration.py", ".mean() >= ALIKE", ".mean() >= -1", LAID),
    Mutant("a fold's own images stay in it", "features/places.py", "self.products, places.mT, places, alpha=-1",
           "self.products, places.mT, places, alpha=0", LEFT),
]  # fmt: skip


def passes(package_root: Path, tests: str) -> bool:
    """Whether the tests pass with the package that lies in `package_root`."""
    environment = os.environ | {"PYTHONPATH": str(package_root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=package_root, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {tests} (status {done.returncode}):\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main(words: str) -> int:
    """Try the mutants whose description holds `words`; print a line each."""
    chosen = [mutant for mutant in MUTANTS if words in mutant.what]
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("attnad", "tests", "pyproject.toml", "book", "notebooks"):
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("_build", "runs", "__pycache__")
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            if not passes(copy, tests):
                raise SystemExit(f"{tests} fails without any mistake; mend that first")
        for mutant in chosen:
            path = copy / "attnad" / mutant.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.right) < 1:
                raise SystemExit(f"attnad/{mutant.file} no longer holds {mutant.right!r}; bring the mutant up to date")
            path.write_text(text.replace(mutant.right, mutant.wrong, 1), encoding="utf-8")
            noticed = not passes(copy, mutant.tests)
            path.write_text(text, encoding="utf-8")
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {mutant.what} ({mutant.tests})", flush=True)
            survived += [] if noticed else [mutant.what]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mistakes noticed")
    return bool(survived) or not chosen


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
