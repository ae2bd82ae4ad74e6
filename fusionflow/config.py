"""What a person chooses: the method, how scans are conformed, how the run is spread.

The models refuse unknown names and wrong types, so a misspelt option in a YAML file is an
error and never a silent default. Everything that can change a voxel lives in `Method` and
`ConformOptions`; only these two enter a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pywt
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fusionflow.cluster_options import ClusterOptions
from fusionflow.errors import ConfigurationError
from fusionflow.frames import parse_frames
from fusionflow.options import Options, explained, read_options
from fusionflow.plugins import plugin, plugin_names

#: Entry points of other packages: objects of `Method`.
_GROUP = "fusionflow.methods"

#: Raised by one whenever the same options would give other voxels or other figures.
ALGORITHM_VERSION = 4

#: Arithmetic of a network.
Precision = Literal["float32", "bfloat16", "int8"]


class Wavelet(Options):
    """A 2-D discrete wavelet transform.

    Attributes
    ----------
    name : str
        A discrete wavelet of PyWavelets, such as ``haar``, ``db2`` or ``bior4.4``.
    levels : int
        Decomposition levels; 0 leaves the pixels as they are.
    mode : str
        How a slice goes on beyond its border: an extension mode of PyWavelets.
    """

    kind: Literal["wavelet"] = "wavelet"
    name: str = "db2"
    levels: int = Field(strict=True, default=1, ge=0, le=8)
    mode: str = "symmetric"

    @field_validator("name")
    @classmethod
    def _known_wavelet(cls, value: str) -> str:
        if value not in pywt.wavelist(kind="discrete"):
            raise ValueError(f"no discrete wavelet is called {value!r}; try haar, db2 or bior4.4")
        if value == "dmey":
            raise ValueError("dmey is an approximation that does not give the image back")
        return value

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, value: str) -> str:
        if value not in pywt.Modes.modes:
            raise ValueError(f"no extension mode is called {value!r}; try symmetric")
        return value


class LaplacianPyramid(Options):
    """A Laplacian pyramid, see `fusionflow.pyramid`.

    Attributes
    ----------
    levels : int
        Levels, each half the size of the one before.
    """

    kind: Literal["laplacian"]
    levels: int = Field(strict=True, default=4, ge=1, le=8)


def _kind(value: Any) -> str:  # noqa: ANN401
    """Say which transform is meant; a wavelet need not say that it is one."""
    kind = value.get("kind", "wavelet") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


Transform: TypeAlias = Annotated[
    Annotated[Wavelet, Tag("wavelet")] | Annotated[LaplacianPyramid, Tag("laplacian")],
    Discriminator(_kind),
]

#: The pixels as they are.
PIXELS = Wavelet(levels=0)


class Method(Options):
    """Transform, backbone, taps and rule: all that decides how two slices become one.

    Attributes
    ----------
    name : str
        What the method is called in tables and sidecars.
    transform : Wavelet or LaplacianPyramid
        The transform whose bands are merged.
    rule : str
        How activities become weights, see `fusionflow.fusion.RULES`.
    backbone : str or None
        The network that is read, see `fusionflow.backbones.BACKBONES`.
    weights : str
        Of a learned rule ``auto`` (the model that comes with fusionflow) or a model's path; else
        ``auto``, ``torchvision``, ``random:SEED``, or the path of a ``.safetensors`` or
        ``.pth`` file, see `fusionflow.weights.find_weights`.
    taps : tuple of str
        Layers whose feature maps are read.
    window : int
        Side of the square, in pixels of the tap, that activity is averaged over. Odd.
    temperature : float
        Below 1 the weights move towards a choice of one source, above 1 towards the mean.
    balance : float
        Of a learned rule: from 0, the PET itself, over both to 1, the MRI itself.
    precision : {"float32", "bfloat16", "int8"}
        Arithmetic of the backbone; int8 on processors alone (`fusionflow.int8`). Coefficients are
        float32 in any case.
    batch : int
        Band images in one forward pass of the backbone.
    threads : int
        CPU threads of one forward pass. They, like `batch`, can change last bits, so they belong
        to the method and not to the machine; run more workers to use more cores. Most
        convolutions of 3 x 3 in float32 take one whatever is said here (`fusionflow.cpu_layers`).
    """

    name: str
    transform: Transform = Wavelet()
    rule: str
    backbone: str | None = None
    weights: str = "auto"
    taps: tuple[str, ...] = ()
    window: int = Field(strict=True, default=3, ge=1, le=31)
    temperature: float = Field(strict=True, default=0.5, gt=0, le=100)
    balance: float = Field(strict=True, default=0.5, ge=0, le=1)
    precision: Precision = "float32"
    batch: int = Field(strict=True, default=16, ge=1, le=1024)
    threads: int = Field(strict=True, default=1, ge=1, le=1024)

    @field_validator("window")
    @classmethod
    def _odd_window(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the window has a middle, so its side must be odd")
        return value

    def fingerprint(self, weights_identity: str | None) -> str:
        """Return a SHA-256 over every parameter and the weights themselves.

        Parameters
        ----------
        weights_identity : str or None
            The weights' checksum (or ``random:SEED``); where they lie does not matter.
        """
        options = self.model_dump(mode="json", exclude={"name", "weights"})
        options["weights"] = weights_identity
        options["algorithm"] = ALGORITHM_VERSION
        text = json.dumps(options, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _learned(name: str, backbone: str, taps: tuple[str, ...]) -> Method:
    return Method(name=name, rule="learned", backbone=backbone, taps=taps)


def _zero_shot(name: str, backbone: str, taps: tuple[str, ...], **options: Any) -> Method:  # noqa: ANN401
    return Method(name=name, rule="l1-soft", backbone=backbone, taps=taps, **options)


_VGG_TAPS = ("relu1_1", "relu2_1", "relu3_1")
_ALEXNET_TAPS = ("relu1", "relu2", "relu3")
_DENSENET_TAPS = ("relu0", "denseblock1", "denseblock2")

#: The methods that have a name of their own: the paper's, those without training, then what they
#: are compared with.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _learned("dwt-vgg19", "vgg19", _VGG_TAPS),
        _learned("dwt-alexnet", "alexnet", _ALEXNET_TAPS),
        _learned("dwt-densenet121", "densenet121", _DENSENET_TAPS),
        _zero_shot("dwt-vgg19-l1", "vgg19", _VGG_TAPS),
        _zero_shot("dwt-vgg16-l1", "vgg16", _VGG_TAPS),
        _zero_shot("dwt-alexnet-l1", "alexnet", _ALEXNET_TAPS),
        _zero_shot("dwt-densenet121-l1", "densenet121", _DENSENET_TAPS),
        _zero_shot("dwt-random-l1", "vgg19", _VGG_TAPS, weights="random:0"),
        _zero_shot("feature-vgg19-l1", "vgg19", _VGG_TAPS, transform=PIXELS),
        Method(name="mri", rule="mri", transform=PIXELS),
        Method(name="pet", rule="pet", transform=PIXELS),
        Method(name="average", rule="average", transform=PIXELS),
        Method(name="maximum", rule="max", transform=PIXELS),
        Method(name="dwt-max", rule="max-abs"),
        Method(name="laplacian", rule="max-abs", transform=LaplacianPyramid(kind="laplacian")),
    )
}


def find_method(name: str) -> Method | None:
    """Return the method called `name`, ours or of an installed package; None if there is none.

    Raises
    ------
    ConfigurationError
        If a package offers one that cannot be used.
    """
    return METHODS.get(name) or plugin(_GROUP, name, Method)


def named_method(name: str) -> Method:
    """Return the method called `name`, ours or of an installed package.

    Raises
    ------
    ConfigurationError
        If no method has that name; the message lists those that exist.
    """
    method = find_method(name)
    if method is None:
        known = ", ".join(method_names())
        raise ConfigurationError(
            f"No method is called {name!r}",
            f"Known are: {known}. A method of another package needs that installed",
        )
    return method


def method_names() -> list[str]:
    """Return the names of our methods, then of those that installed packages offer."""
    return list(dict.fromkeys([*METHODS, *plugin_names(_GROUP)]))


class ConformOptions(Options):
    """How a scan is brought onto one grid and one intensity scale.

    Attributes
    ----------
    mri_percentile, pet_percentile : float
        The percentile inside the mask that becomes 1. Nothing is clipped.
    frames : str
        Which frames of a dynamic PET: ``all``, ``first5min``, ``40-60min``, ``frame:3``.
    pet_units : {"stored", "suv", "suvr"}
        What the PET is brought to before it is scaled.
    pet_window : tuple of float or None
        Low and high in these units, which become 0 and 1 for every scan, instead of 0 and the
        percentile of each.
    registration : {"auto", "header", "rigid", "none"}
        How the PET is brought onto the MRI.
    mask : str
        ``auto`` (a file where there is one, else ``head``), ``head``, or a rule of another package.
    space : Path or None
        An image that all inputs are aligned with, whose grid the results get.
    """

    mri_percentile: float = Field(strict=True, default=99.5, gt=50, le=100)
    pet_percentile: float = Field(strict=True, default=99.5, gt=50, le=100)
    frames: str = "all"
    pet_units: Literal["stored", "suv", "suvr"] = "stored"
    pet_window: tuple[float, float] | None = None
    registration: Literal["auto", "header", "rigid", "none"] = "auto"
    mask: str = "auto"
    space: Path | None = None

    @field_validator("space")
    @classmethod
    def _space_is_found_from_anywhere(cls, value: Path | None) -> Path | None:
        return None if value is None else value.absolute()

    @field_validator("frames")
    @classmethod
    def _frames_mean_something(cls, value: str) -> str:
        parse_frames(value)
        return value

    @field_validator("pet_window")
    @classmethod
    def _window_is_one(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not -math.inf < value[0] < value[1] < math.inf:
            raise ValueError("low must be less than high")
        return value


class InputOptions(Options):
    """Which images are taken, and what else belongs to them.

    Attributes
    ----------
    bids_filter : Path or None
        JSON file that says which images are wanted by their entities.
    derivatives : tuple of Path
        Derivative datasets with masks, or images in T1w space.
    reference_region : str or None
        Name of the region whose mask SUVR divides by.
    """

    bids_filter: Path | None = None
    derivatives: tuple[Path, ...] = ()
    reference_region: str | None = None

    @field_validator("bids_filter", "derivatives")
    @classmethod
    def _are_found_from_anywhere(
        cls, value: Path | tuple[Path, ...] | None
    ) -> Path | tuple[Path, ...] | None:
        if isinstance(value, tuple):
            return tuple(path.absolute() for path in value)
        return None if value is None else value.absolute()


class RunConfig(Options):
    """A whole run.

    Attributes
    ----------
    method : Method
        How scans are fused.
    conform : ConformOptions
        How scans are prepared.
    region : {"frame", "mask"}
        Where metrics are computed: over whole slices, as the literature does, or inside the
        head mask.
    input : InputOptions
        Which images are taken.
    cluster : ClusterOptions
        Where the work runs.
    """

    method: Method = METHODS["dwt-vgg19"]
    conform: ConformOptions = ConformOptions()
    region: Literal["frame", "mask"] = "frame"
    input: InputOptions = InputOptions()
    cluster: ClusterOptions = ClusterOptions()

    @field_validator("input")
    @classmethod
    def _region_has_a_use(cls, value: InputOptions, info: ValidationInfo) -> InputOptions:
        conform = info.data.get("conform")
        if value.reference_region and conform is not None and conform.pet_units != "suvr":
            raise ValueError(
                f"reference_region {value.reference_region} has no use with pet_units "
                f"{conform.pet_units}: ask for suvr (--pet-units suvr), or leave it out"
            )
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: object) -> object:
        if isinstance(value, str):
            return named_method(value)
        of_name = find_method(str(value.get("name"))) if isinstance(value, dict) else None
        if isinstance(value, dict) and of_name is not None:
            known = of_name.model_dump()
            if isinstance(value.get("transform"), dict):
                value = {**value, "transform": {**known["transform"], **value["transform"]}}
            return {**known, **value}
        return value

    @model_validator(mode="after")
    def _eight_bits_are_of_processors(self) -> RunConfig:
        reads = self.method.backbone is not None
        if reads and self.method.precision == "int8" and self.cluster.needs_gpu:
            raise ValueError(
                "precision int8 is arithmetic of processors, but the cluster is to use GPUs: ask "
                "for bfloat16, or for no GPU (--gpu never)"
            )
        return self


def load_config(path: Path) -> RunConfig:
    """Read a run from a YAML file.

    ``method`` is a name (``dwt-vgg19``) or a mapping; a mapping with a known ``name`` starts
    from that method and changes what it lists.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, is not YAML, or holds an unknown or wrong option; the
        message names the file and each option.
    """
    return validated(read_options(path), str(path))


def validated(content: dict[str, Any], where: str) -> RunConfig:
    """Return `content` as a run, or say which option is wrong and why.

    Raises
    ------
    ConfigurationError
        If an option is unknown or has a wrong value.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {explained(error)}") from error
