"""The systems that the paper's tables set beside its own, by the names of their recipes: one file each, on `rival`."""

from attnad.detectors.rivals.anogan import AnoGAN
from attnad.detectors.rivals.autoencoder import AutoencoderL2, AutoencoderSSIM
from attnad.detectors.rivals.cavga import CAVGA
from attnad.detectors.rivals.gamma_vae import GammaVAE
from attnad.detectors.rivals.lsa import LSA
from attnad.detectors.rivals.ocgan import OCGAN
from attnad.detectors.rivals.rival import Rival
from attnad.detectors.rivals.students import Students
from attnad.detectors.rivals.superpixels import Superpixels
from attnad.detectors.rivals.ulslm import ULSLM
from attnad.detectors.rivals.vevae import VEVAE

RIVALS: dict[str, type[Rival]] = {
    "ae-l2": AutoencoderL2, "ae-ssim": AutoencoderSSIM, "gamma-vae": GammaVAE, "student": Students,
    "anogan": AnoGAN, "vevae": VEVAE, "cavga": CAVGA, "lsa": LSA,
    "superpixel": Superpixels, "ocgan": OCGAN, "ulslm": ULSLM,
}  # fmt: skip
