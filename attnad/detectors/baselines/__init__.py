"""The systems that the paper's tables set beside its own, by the names of their recipes: one file each, on `rival`."""

from attnad.detectors.baselines.anogan import AnoGAN
from attnad.detectors.baselines.autoencoder import AutoencoderL2, AutoencoderSSIM
from attnad.detectors.baselines.cavga import CAVGA
from attnad.detectors.baselines.gamma_vae import GammaVAE
from attnad.detectors.baselines.lsa import LSA
from attnad.detectors.baselines.ocgan import OCGAN
from attnad.detectors.baselines.students import Students
from attnad.detectors.baselines.superpixels import Superpixels
from attnad.detectors.baselines.ulslm import ULSLM
from attnad.detectors.baselines.vevae import VEVAE
from attnad.detectors.network import NetworkDetector

BASELINES: dict[str, type[NetworkDetector]] = {
    "ae-l2": AutoencoderL2, "ae-ssim": AutoencoderSSIM, "gamma-vae": GammaVAE, "student": Students,
    "anogan": AnoGAN, "vevae": VEVAE, "cavga": CAVGA, "lsa": LSA,
    "superpixel": Superpixels, "ocgan": OCGAN, "ulslm": ULSLM,
}  # fmt: skip
