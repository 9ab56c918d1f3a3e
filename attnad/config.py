"""Every hyper-parameter once: symbol, value and source (section of the paper, or D# of book/deviations.md).

More than 300 lines: values, their ranges, and what files of earlier versions say of them change together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

EncoderName = Literal["resnet18", "resnet18-imagenet", "efficientnet-lite0", "efficientnet-lite0-random"]
FrozenName = Literal["efficientnet-lite0", "resnet18-imagenet"]
AnyFrozenName = Annotated[str, tyro.conf.arg(metavar="{efficientnet-lite0,resnet18-imagenet,timm:NAME}")]
DETECTORS = {  # every recipe, and its class in `attnad.detectors`, which imports it when it is asked for
    "quick": "paper.Paper", "paper": "paper.Paper", "strong": "strong.Strong", "gaussian": "gaussian.Gaussian",
    "discriminators": "gaussian.Gaussian",
    "map": "map.AttentionMap", "guided": "guided.Guided", "neighbours": "neighbours.Neighbours",
    "adapted": "adapted.Adapted", "dcgan": "dcgan.DCGAN",
    "ae-l2": "baselines.autoencoder.AutoencoderL2", "ae-ssim": "baselines.autoencoder.AutoencoderSSIM",
    "gamma-vae": "baselines.gamma_vae.GammaVAE", "student": "baselines.students.Students",
    "anogan": "baselines.anogan.AnoGAN", "vevae": "baselines.vevae.VEVAE", "cavga": "baselines.cavga.CAVGA",
    "lsa": "baselines.lsa.LSA", "superpixel": "baselines.superpixels.Superpixels",
    "ocgan": "baselines.ocgan.OCGAN", "ulslm": "baselines.ulslm.ULSLM",
}  # fmt: skip
BASELINES = {  # recipes of what the paper's tables set beside its own, and the names there
    "ae-l2": "AE-L2", "ae-ssim": "AE-SSIM", "gamma-vae": "gamma-VAE", "student": "Student",
    "anogan": "AnoGAN", "vevae": "VEVAE", "cavga": "CAVGA", "lsa": "LSA",
    "superpixel": "Superpixel", "ocgan": "OCGAN", "ulslm": "ULSLM",
}  # fmt: skip
T = TypeVar("T")
Recipe = Annotated[  # of a field, whose type then names the recipes of that detector alone
    T,
    tyro.conf.arg(
        metavar=f"{{{','.join(DETECTORS)}}}",
        help="Where the other values come from; by default strong for a folder, quick for the others. quick, for a "
        "laptop's CPU; paper, as close to the paper as it says; strong, for photographs; gaussian, one Gaussian a "
        "place alone; discriminators, the same and a discriminator a level; map, an attention map with skip "
        "connections, alone; guided, discriminators on features times that map; "
        "neighbours, nearest neighbours on frozen features; adapted, the same on features that were first adapted to "
        "the normal images, for whole images; dcgan, the GAN on images of the paper's table 1; "
        f"{', '.join(BASELINES)}, systems that the paper compares itself with.",
    ),
]
Data = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        help="textures (embedded), cifar10, or a folder: simply images, all normal, or laid out as MVTec AD, "
        "MVTec AD 2, MVTec LOCO, BTAD, VisA, good and bad, or train/<class> and test/<class>."
    ),
]
PRETRAINED = {"resnet18-imagenet": "imagenet", "efficientnet-lite0": "imagenet"}  # encoders with weights, and whose


@dataclass(frozen=True)
class TransformConfig:
    """How a whole image is changed into x'_ano (section 3.2.1)."""

    rotation: bool = True
    """Rotate by 90, 180 or 270 degrees (section 3.2.1)."""
    permutation: bool = True
    """Permute patches (section 3.2.1)."""
    jitter: bool = True
    """Jitter colours (section 3.2.1)."""
    grids: tuple[int, ...] = (2, 4)
    """Patch grids of perm, one drawn for each image (D1)."""
    brightness: float = 0.5
    """Brightness factor within 1 +- this (D4)."""
    contrast: float = 0.5
    """Contrast factor within 1 +- this (D4)."""
    saturation: float = 0.5
    """Saturation factor within 1 +- this (D4)."""
    hue: float = 0.2
    """Hue shift within +- this, in turns of the colour circle (D4)."""


@dataclass(frozen=True)
class AugmentConfig(TransformConfig):
    """Hard augmentation: how synthetic anomalies are made (section 3.2.1)."""

    box_area: tuple[float, float] = (0.02, 0.4)
    """Area of the replaced rectangle of x'', as a share of the image (D2)."""
    box_aspect: float = 3.0
    """Largest ratio of the rectangle's sides (D2)."""
    whole_share: float = 0.5
    """Share of x' among the synthetic anomalies, the rest is x'' (D3)."""


@dataclass(frozen=True)
class AttentionConfig:
    """Stage 1, the attention network (section 3.2)."""

    encoder: Annotated[EncoderName, tyro.conf.arg(prefix_name=False)] = "resnet18-imagenet"
    """Encoder of G1: ResNet-18 or EfficientNet-Lite0, with ImageNet's or with random weights (D9)."""
    freeze_encoder: bool = False
    """Keep the encoder's weights and batch statistics as they come (D9)."""
    width: int = 64
    """Channels of the narrowest layer of the random ResNet-18, the decoders and the discriminators (D10)."""
    latent: int = 128
    """Channels of the spatial latent z (D11)."""
    epochs: int = 100
    """Passes over the normal images; the last weights are used (D12)."""
    batch: int = 16
    """Normal images a step; as many synthetic anomalies come with them (D12)."""
    learning_rate: float = 2e-4
    """Adam's, for G1 and D1 (D12)."""
    beta1: float = 0.5
    """Adam's first moment decay (D12)."""
    adv_ano_weight: float = 1.0
    """Weight of L_adv^ano in eq. (5) (D8)."""
    adv_weight: float = 1.0
    """Weight of L_adv in eq. (5) (D8)."""
    g_weight: float = 1.0
    """Weight of L_G in eq. (5) (D8)."""
    att_weight: float = 1.0
    """Weight of L_att in eq. (5) (D8)."""
    kl_weight: float = 1.0
    """Weight of the KL term inside L_G, eq. (3) (D8)."""
    reconstruct_anomalies: bool = True
    """Apply L_R to synthetic anomalies too (D14)."""
    renew_statistics: bool = field(default=False, metadata={"before": False})
    """Take the means and variances of batch norm anew when the weights rest (D34)."""


@dataclass(frozen=True)
class ADGANConfig:
    """Stage 2, ADGAN (section 3.3)."""

    epochs: int = 100
    """Passes over the normal images; the last weights are used (D12)."""
    batch: int = 16
    """Normal images a step (D12)."""
    learning_rate: float = 2e-4
    """Adam's, for G2 and D2 (D12)."""
    beta1: float = 0.5
    """Adam's first moment decay (D12)."""
    reconstruction_weight: float = 1.0
    """Weight of the generator's reconstruction of F_nor beside its adversarial loss (D15)."""
    train_features: bool = False
    """Train the two layers of F_img with D2, or keep them frozen (D16)."""
    synthetic_fakes: bool = False
    """Show D2 the masked features of synthetic anomalies as fakes too, as table 1 does with images (D17)."""
    ema: float = 0.99
    """Decay, a step, of the moving average of D2's weights that scores (D18)."""


@dataclass(frozen=True)
class DetectorConfig:
    """What every detector's configuration has; each gives its own defaults and adds what decides its scores."""

    data: Data = "textures"
    """Name of the data set, or path of its folder."""
    normal_class: str | None = None
    """The class that is normal, where the data set has several."""
    recipe: Recipe[str] = ""
    """Where the other values come from."""
    size: int = 64
    """Side of the square images, in pixels: a multiple of 32."""
    seed: int = 0
    """Seed of all that is random, beginning with the split that holds out normal images."""
    image_score: str = ""
    """Which score of `attnad.score.Scores` judges an image."""

    def __post_init__(self) -> None:
        """Give a folder one name, however it is written: photos/good/ and ./photos/good are photos/good."""
        plain = PurePath(self.data).as_posix() if self.data else ""
        if plain != self.data and plain in ("textures", "cifar10"):
            plain = f"./{plain}"  # a folder that is called so
        object.__setattr__(self, "data", plain)


@dataclass(frozen=True)
class PaperConfig(DetectorConfig):
    """All that decides a run's weights and scores, beside the code and the machine."""

    recipe: Recipe[Literal["quick", "paper"]] = "quick"
    seed: int = 0
    """Seed of weights, order, noise and synthetic anomalies, and of the split that holds out normal images."""
    image_score: Literal["adgan", "attention", "reconstruction", "discriminator"] = "adgan"
    """Which score of `attnad.score.Scores` judges an image: ADGAN's as in section 4, or another (D20)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    adgan: ADGANConfig = field(default_factory=ADGANConfig)

    @property
    def encoder(self) -> str:
        """Name of the encoder, for tables."""
        return self.attention.encoder

    @property
    def epochs(self) -> str:
        """Epochs of both stages, for tables."""
        return f"{self.attention.epochs}+{self.adgan.epochs}"


@dataclass(frozen=True)
class GaussianConfig(DetectorConfig):
    """All that decides a `gaussian` or `discriminators` run's scores, beside the code and the machine."""

    recipe: Recipe[Literal["gaussian", "discriminators", "guided"]] = "gaussian"
    size: int = 256
    seed: int = 0
    """Seed of the split that holds out normal images, of kept channels, noise and discriminators."""
    image_score: Literal["top", "peak"] = "top"
    """What judges an image: the mean of the highest hundredth of its map, or the map's highest value (D30)."""
    encoder: AnyFrozenName = "efficientnet-lite0"
    """The frozen network, with ImageNet's weights; of timm's, any with features of strides 2 to 16 (D27)."""
    min_side: int = field(default=128, metadata={"was": "least"})
    """Smaller images are enlarged to this side first, in pixels (D27)."""
    per_level: bool = field(default=True, metadata={"was": "apart"})
    """Judge the levels each by itself, or joined at stride 8 as PaDiM does (D27)."""
    channels: int = 176
    """Most channels that are kept of a level (D28)."""
    shrink: float = 0.5
    """How far each place's covariance is moved towards that of all places, from 0 to 1 (D28)."""
    ridge: float = 0.002
    """Added to the covariances' diagonals, in units of the channel's variance over all places (D28)."""
    noise: float = 1.5
    """Deviation of the noise that makes fakes of whitened features, in units of theirs (D29)."""
    stain_share: float = field(default=0.5, metadata={"before": 0.0, "was": "stained"})
    """Share of a discriminator's fakes that are places of stained normal images; the others are noise (D33)."""
    steps: int = 300
    """Steps of training a discriminator; with 0 the map is the Mahalanobis distance (D29)."""
    batch: int = 8192
    """PatchGaussians a step, and as many fakes (D29)."""
    width: int = 64
    """Units of a discriminator's hidden layer (D29)."""
    learning_rate: float = 1e-3
    """AdamW's, for the discriminators (D29)."""

    @property
    def epochs(self) -> str:
        """Steps of a discriminator, for tables."""
        return f"{self.steps} steps" if self.steps else "0"


@dataclass(frozen=True)
class SoftConfig:
    """Soft augmentation: how a normal image may look after the camera or the light has moved, normal all the same."""

    shift: float = 0.016
    """Farthest shift to either side, as a share of the image's side: 4 pixels of 256 (D35)."""
    turn: float = 3.0
    """Largest turn to either side, in degrees (D35)."""
    light: float = 0.2
    """Brightness factor within 1 +- this (D35)."""
    gain: float = 0.03
    """Factor of each colour within 1 +- this (D35)."""
    noise: float = 4.0
    """Largest deviation of noise, in grey levels, added to every second copy (D35)."""
    jpeg: int = 50
    """Lowest quality as JPEG, 1 to 95, of every third copy (D35)."""


@dataclass(frozen=True)
class StrongConfig(DetectorConfig):
    """All that decides a `strong` run's scores, beside the code and the machine."""

    recipe: Recipe[Literal["strong"]] = "strong"
    size: int = 256
    seed: int = 0
    """Seed of the copies, and of which photographs are left out together."""
    image_score: Literal["extent", "top", "peak"] = "extent"
    """What judges an image: its highest place, hundredth or tenth, whichever is most unusual, or one alone (D36)."""
    encoder: AnyFrozenName = "efficientnet-lite0"
    """The frozen network, with ImageNet's weights; of timm's, any with features of strides 2 to 16 (D27)."""
    min_side: int = 128
    """Smaller images are enlarged to this side first, in pixels (D27)."""
    register: bool = field(default=True, metadata={"before": False})
    """Lay photographs of one part alike before they are judged, in whatever pose it lies; others stay (D38)."""
    copies: int = 2
    """Softly augmented copies of each normal image to learn from beside it; 0 where nothing ever moves (D35)."""
    shrink: float = 0.5
    """How far each place's covariance is moved towards that of all places, from 0 to 1 (D28)."""
    ridge: float = 0.002
    """Added to the covariances' diagonals, in units of the channel's variance over all places (D28)."""
    folds: int = 20
    """In how many parts the photographs are left out, each judged by what was fitted to the others (D37)."""
    soft: SoftConfig = field(default_factory=SoftConfig)

    @property
    def epochs(self) -> str:
        """Epochs, for tables: nothing is trained."""
        return "0"


def strong_recipe(name: str, data: str) -> StrongConfig:
    """Give the configuration of `strong` for a data set: 256 pixels, textures 64, cifar10 32."""
    return StrongConfig(data=data, size={"cifar10": 32, "textures": 64}.get(data, 256))


def gaussian_recipe(name: Literal["gaussian", "discriminators"], data: str) -> GaussianConfig:
    """Give the configuration of `gaussian`, or of it with discriminators, for a data set: sizes as of `strong`."""
    steps = GaussianConfig.steps if name == "discriminators" else 0
    return GaussianConfig(data=data, recipe=name, size=strong_recipe(name, data).size, steps=steps)


def paper_recipe(name: str, data: str) -> PaperConfig:
    """Give the configuration of `quick` or `paper` for a data set.

    `paper` keeps to the paper wherever it speaks and is meant for a GPU; `quick` trains in about a minute on a
    laptop's CPU, and differs from `paper` only in the values below (D21). Images are 32 pixels wide for cifar10, 64
    for textures, else 256 (`paper`) or 128 (`quick`).
    Raises ValueError on another name.
    """
    size = {"cifar10": 32, "textures": 64}.get(data, 256 if name == "paper" else 128)
    batch = 64 if size <= 64 else 16
    # The paper prints no weights; with all of them 1, the map does not learn (D8).
    stage1 = AttentionConfig(batch=batch, adv_ano_weight=0.01, adv_weight=0.01, kl_weight=0.01)
    if name == "paper":
        return PaperConfig(data=data, recipe="paper", size=size, attention=stage1, adgan=ADGANConfig(batch=batch))
    if name == "quick":
        small = replace(stage1, encoder="resnet18", width=16, latent=32, epochs=10, batch=16)
        return PaperConfig(
            data=data,
            recipe="quick",
            size=size,
            augment=AugmentConfig(box_area=(0.005, 0.3)),
            attention=replace(small, learning_rate=1e-3, renew_statistics=True),
            adgan=ADGANConfig(epochs=4, batch=32, learning_rate=5e-4, synthetic_fakes=True, ema=0.9),
        )
    raise ValueError(f"there is no recipe {name!r}; use quick or paper")


Range = tuple[str, str, Callable[[Any], bool]]  # names of fields, what they take, whether a value is that
SIZE: Range = ("size", "a multiple of 32 up to 1024", lambda v: 32 <= v <= 1024 and v % 32 == 0)
SEED: Range = ("seed", "a whole number from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
FROZEN: Range = (
    "encoder", "efficientnet-lite0, resnet18-imagenet, or timm: and a name, such as timm:wide_resnet50_2",
    lambda v: v in get_args(FrozenName) or bool(re.fullmatch(r"timm:[\w.]+", v, re.ASCII)),
)  # fmt: skip
AUGMENT_RANGES: tuple[Range, ...] = (
    ("augment.grids", "one or more whole numbers from 2 to 32", lambda v: v and all(2 <= g <= 32 for g in v)),
    ("augment.box_area", "two shares above 0 and up to 1, the lower first", lambda v: 0 < v[0] <= v[1] <= 1),
    ("augment.box_aspect", "1 or more", lambda v: 1 <= v < math.inf),
    ("augment.hue", "from 0 to 0.5", lambda v: 0 <= v <= 0.5),
    ("augment.whole_share augment.brightness augment.contrast augment.saturation",
     "from 0 to 1", lambda v: 0 <= v <= 1),
)  # fmt: skip
_RANGES: tuple[Range, ...] = (
    SIZE,
    SEED,
    *AUGMENT_RANGES,
    ("adgan.ema", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("attention.latent", "from 1 to 1024", lambda v: 1 <= v <= 1024),
    ("attention.width", "from 2 to 128", lambda v: 2 <= v <= 128),
    ("attention.batch adgan.batch", "from 2 to 65536", lambda v: 2 <= v <= 65536),
    ("attention.learning_rate adgan.learning_rate", "above 0", lambda v: 0 < v < math.inf),
    ("attention.beta1 adgan.beta1", "from 0 to below 1", lambda v: 0 <= v < 1),
    ("attention.adv_ano_weight attention.adv_weight attention.g_weight attention.att_weight attention.kl_weight "
     "adgan.reconstruction_weight", "0 or more", lambda v: 0 <= v < math.inf),
    ("attention.epochs adgan.epochs", "from 0 to a million", lambda v: 0 <= v <= 1_000_000),
)  # fmt: skip


def check_ranges(config: Any, ranges: Iterable[Range]) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense.

    The upper ends keep a damaged or foreign config.json from asking for networks that no machine can hold.
    """
    for names, takes, fits in ranges:
        for name in names.split():
            if not fits(value := attrgetter(name)(config)):
                raise ValueError(f"{name} cannot be {value}; choose {takes}")


def check(config: PaperConfig) -> None:
    """Raise ValueError, naming the field and what it takes, where a value makes no sense."""
    check_ranges(config, _RANGES)
    check_grids(config)


def check_grids(config: Any) -> None:
    """Raise ValueError where a grid of `augment` does not divide the images."""
    if odd := [grid for grid in config.augment.grids if config.size % grid]:
        raise ValueError(f"augment.grids: {config.size} pixels do not divide by {odd[0]}; choose another grid or size")


def to_dict(config: PaperConfig) -> dict[str, Any]:
    """Turn a configuration into plain dictionaries, ready for JSON."""
    return asdict(config)


# Values of files that are no fields now, by the configuration's class or its recipe.
_GONE = {"ADGANConfig": {"pixels": False, "real_anomalies": 0}}  # the GAN of table 1 is a detector of its own now
_IDLE: dict[str, dict[str, Any]] = {  # gone too, since nothing came of them: what they were by default
    **{name: {"latent": 64} for name in ("map", "dcgan", "student", "superpixel")},
    "TransformConfig": {"box_area": (0.02, 0.4), "box_aspect": 3.0, "whole_share": 0.5},
}
_CONSTANT: dict[str, dict[str, Any]] = {  # of the detector's class now
    **{name: {"beta1": 0.9} for name in ("map", "ae-l2", "ae-ssim", "student")},
    "dcgan": {"beta1": 0.5},
    "gamma-vae": {"beta1": 0.9, "walk": 30, "stride": 1.0, "sparsity": 0.05},
    "anogan": {"beta1": 0.5, "search_rate": 0.1, "feature_weight": 0.1},
    "vevae": {"beta1": 0.9, "kl_weight": 0.1},
    "cavga": {"beta1": 0.9, "kl_weight": 0.1, "adv_weight": 0.001, "expansion_weight": 0.01},
    "lsa": {"beta1": 0.9, "bins": 100, "surprise_weight": 1.0},
    "superpixel": {"beta1": 0.9, "pieces": 48, "groups": 6},
    "ocgan": {"beta1": 0.5, "noise": 0.05, "reconstruction_weight": 1000.0, "mining": 3},
    "ulslm": {"beta1": 0.5, "near_weight": 10.0},
}


def first_name(recipe: Any) -> Any:
    """What a recipe was called first: files and folders know it by that, so that those from before are found."""
    return "strong" if recipe == "discriminators" else recipe


def now_called(values: Any) -> Any:
    """A file's values with its recipe as it is called now: until there was another `strong`, that was discriminators.

    Noise among the values tells the two apart.
    """
    if isinstance(values, dict) and values.get("recipe") == "strong" and "noise" in values:
        return values | {"recipe": "discriminators"}
    return values


def _past(cls: type, recipe: Any, *tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What tables say of a class and of a recipe."""
    return {k: v for table in tables for key in (cls.__name__, str(recipe)) for k, v in table.get(key, {}).items()}


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Build a configuration of class `cls` from plain dictionaries, as `to_dict` or JSON gives them.

    A field that is younger than the file takes its metadata's "before": what there was without it; one that had another
    name is found by that, its "was". One that is gone is passed over where it says what there is without it (`_GONE`,
    `_CONSTANT`), and where nothing came of it (`_IDLE`). Raises ValueError on a key that is unknown or missing and on a
    value of another type, naming it, so that a file of another version is refused.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} needs a table of values, got {type(values).__name__}")
    hints = get_type_hints(cls)
    gone, idle = _past(cls, values.get("recipe"), _GONE, _CONSTANT), _past(cls, values.get("recipe"), _IDLE)
    values = {k: v for k, v in values.items() if k not in idle and (k not in gone or v != gone[k])}
    renamed = {f.metadata["was"]: f.name for f in fields(cls) if "was" in f.metadata and f.name not in values}
    values = {renamed.get(k, k): v for k, v in values.items()}
    values = {f.name: f.metadata["before"] for f in fields(cls) if "before" in f.metadata} | values
    if wrong := sorted(hints.keys() ^ values.keys()):
        names = ", ".join(name if name.isprintable() else ascii(name) for name in wrong)
        raise ValueError(
            f"{cls.__name__} does not match this version of attnad: {names} unknown or missing; use the version that "
            "wrote it"
        )
    built: dict[str, Any] = {}
    for name, hint in hints.items():
        value: Any = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if isinstance(hint, type) and is_dataclass(hint):
            value = from_dict(hint, value)
        elif not _fits(value, hint):
            wanted = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"{cls.__name__}.{name} cannot be {value!r}; it takes {wanted}")
        built[name] = value
    return cls(**built)


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Say in words which values of two configurations, as plain dictionaries, differ.

    A value that only one has is not named: it is of another recipe, and that is.
    """
    found = []
    for key, value in there.items():
        if isinstance(value, dict):
            found += differences(value, here.get(key, value), f"{prefix}{key}.")
        elif value != here.get(key, value):
            found.append(f"{prefix}{key} is {value!r} there, {here[key]!r} here")
    return found


def short_hash(values: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that stand for a configuration, in the names of runs' folders and in results.csv.

    Fields and recipes count by their first names, and fields that are constants now, or did nothing and are gone, as
    they were by default, so that runs from before are found.
    """

    def values(part: Any) -> Any:
        if not is_dataclass(part):
            return part
        named = {f.metadata.get("was", f.name): values(getattr(part, f.name)) for f in fields(part)}
        named |= _past(type(part), named.get("recipe"), _CONSTANT, _IDLE)
        return {k: first_name(v) if k == "recipe" else v for k, v in named.items()}

    return short_hash(values(config))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type: a class, or a Literal, union or tuple of such."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin is UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        args = args[:1] * len(value) if isinstance(value, tuple) and args[-1] is ... else args
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    whole = hint is float and type(value) is int and abs(value) <= 2**53  # a bool is no int here
    return type(value) is hint or whole
