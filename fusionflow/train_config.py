"""What a person chooses for training: data, loss, schedule, how much of the backbone may change."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from fusionflow.config import Wavelet
from fusionflow.errors import ConfigurationError
from fusionflow.options import Options, explained, read_options
from fusionflow.torch_wavelet import check_mode
from fusionflow.untrusted import one_line

Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")


_Side: TypeAlias = Annotated[int, Field(strict=True, ge=16, le=1024)]
#: Steps, epochs.
_MANY = 10**6


class _Source(Options):
    """Slices that are taken from somewhere.

    Attributes
    ----------
    every : int
        Each n-th slice, or picture, is taken.
    """

    every: int = Field(strict=True, default=1, ge=1)


class Pictures(_Source):
    """A folder of picture pairs, see `fusionflow.images`.

    Attributes
    ----------
    folder : str
        Holds one folder of MRI and one of PET pictures of the same names.
    names : str
        Only pictures whose names match this pattern, such as ``41*``.
    pet : {"luminance", "uptake", "grey"}
        How pseudo-colours become values.
    """

    kind: Literal["pictures"]
    folder: str
    names: str = "*"
    pet: Literal["luminance", "uptake", "grey"] = "luminance"


class Scans(_Source):
    """Scans of a BIDS dataset or a manifest, conformed with their headers.

    Attributes
    ----------
    path : str
        Folder or table.
    participants : tuple of str
        Only these; all if empty.
    planes : tuple of str
        Directions in which they are sliced.
    """

    kind: Literal["scans"]
    path: str
    participants: tuple[str, ...] = ()
    planes: tuple[Plane, ...] = PLANES


class Volumes(_Source):
    """One pair of NIfTI images.

    Attributes
    ----------
    t1w, pet : str
        Paths.
    planes : tuple of str
        Directions in which they are sliced.
    """

    kind: Literal["volumes"]
    t1w: str
    pet: str
    planes: tuple[Plane, ...] = PLANES


class Phantoms(_Source):
    """Simulated scans, see `fusionflow.phantom`.

    Attributes
    ----------
    count, first : int
        How many, and the seed of the first.
    shape : tuple of int
        Voxels of the MRI.
    planes : tuple of str
        Directions in which they are sliced.
    """

    kind: Literal["phantoms"]
    count: int = Field(strict=True, ge=1, le=1000)
    first: int = Field(strict=True, default=0, ge=0)
    shape: tuple[_Side, _Side, _Side] = (144, 172, 144)
    planes: tuple[Plane, ...] = PLANES


Source: TypeAlias = Annotated[Pictures | Scans | Volumes | Phantoms, Field(discriminator="kind")]


class Loss(Options):
    """How much each term weighs; figures as `fusionflow.losses` has them.

    Attributes
    ----------
    qabf : float
        Of the logarithm of edge preservation.
    scd : float
        Of the correlations of differences; 4b(1 - b) times as much at `balance` b.
    ssim, vif : float
        Of their logarithms, for each source; the MRI's 2b times as much, the PET's 2(1 - b) times.
    intensity : float
        Mean distance from the brighter of the two sources (what is bright in either stays bright),
        which gives way to a source itself towards its end of the knob.
    lack : float
        By how much more it weighs what a figure lacks of the pixel maximum's than what it is ahead.
    pet : float
        By how much more the PET's SSIM and VIF weigh: it is the smoother source, and fades first.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    qabf: float = Field(strict=True, default=2.0, ge=0)
    scd: float = Field(strict=True, default=3.0, ge=0)
    ssim: float = Field(strict=True, default=1.0, ge=0)
    vif: float = Field(strict=True, default=0.3, ge=0)
    intensity: float = Field(strict=True, default=1.0, ge=0)
    lack: float = Field(strict=True, default=3.0, ge=1)
    pet: float = Field(strict=True, default=2.0, ge=0)

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if not any((self.qabf, self.scd, self.ssim, self.vif, self.intensity)):
            raise ValueError("no term has a weight, so there is nothing to learn")
        return self


class Augmentation(Options):
    """How slices are varied; 0 leaves them as they are.

    Attributes
    ----------
    flip : bool
        Mirror, and turn by quarters.
    zoom : float
        Enlarge or shrink by up to this factor; at least 1.
    gamma : float
        Raise values to a power of up to this, or its inverse, each source apart; at least 1.
    gain : float
        Brighten or darken by up to this share, each source apart.
    blur : float
        Smooth either source, the PET as often as not and the MRI half as often, by up to this
        sigma, pixels.
    noise : float
        Standard deviation of the noise that is added, at most.
    contrast : float
        How often the MRI is given grey values that rise and fall with its own, from 0 to 1: there
        are other weightings than T1.
    pseudo_colour : float
        How often the PET is given grey values that rise and fall with uptake, from 0 (never) to 1:
        so does the luminance of the colours that it is published in.
    """

    flip: bool = True
    zoom: float = Field(strict=True, default=1.5, ge=1, le=4)
    gamma: float = Field(strict=True, default=1.6, ge=1, le=5)
    gain: float = Field(strict=True, default=0.25, ge=0, le=0.9)
    blur: float = Field(strict=True, default=1.5, ge=0, le=5)
    noise: float = Field(strict=True, default=0.05, ge=0, le=0.5)
    contrast: float = Field(strict=True, default=0.5, ge=0, le=1)
    pseudo_colour: float = Field(strict=True, default=0.5, ge=0, le=1)


class TrainConfig(Options):
    """A training.

    Attributes
    ----------
    backbone, taps, weights
        The network that is read, and where its weights come from; see `fusionflow.config.Method`.
    transform : Wavelet
        Of one level.
    reads_backbone : bool
        False for a head that sees the coefficients alone, to tell what the network brings.
    width, seen : int
        Channels of the head, and of what it keeps of each tap.
    unfreeze : int or "all"
        Convolutions of the backbone that are trained, too, counted from the last tap.
    train, validation : tuple of sources
        Data. Each validation figure is over whole slices.
    loss, augmentation
        See `Loss` and `Augmentation`.
    crop : int
        Side of the squares that are trained on, pixels.
    batch, steps, epochs : int
        Squares a step, steps an epoch, epochs at most.
    patience : int
        Epochs without a better validation objective after which training ends.
    learning_rate, backbone_learning_rate : float
        Of Adam at its highest; it rises over the first epoch and falls as a cosine.
    precision : {"float32", "bfloat16"}
        Arithmetic of the backbone.
    threads : int
        CPU threads; the same number gives the same bits.
    pictures_every : int
        Epochs from one picture of validation slices to the next.
    seed : int
        Of everything that is drawn.
    """

    backbone: str = "vgg19"
    taps: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1")
    weights: str = "auto"
    transform: Wavelet = Wavelet()
    reads_backbone: bool = True
    width: int = Field(strict=True, default=32, ge=1, le=512)
    seen: int = Field(strict=True, default=4, ge=1, le=512)
    unfreeze: Annotated[int, Field(strict=True, ge=0)] | Literal["all"] = 0
    train: tuple[Source, ...] = Field(min_length=1)
    validation: tuple[Source, ...] = Field(min_length=1)
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    crop: int = Field(strict=True, default=96, ge=48, le=1024)
    batch: int = Field(strict=True, default=6, ge=1, le=1024)
    steps: int = Field(strict=True, default=50, ge=1, le=_MANY)
    epochs: int = Field(strict=True, default=30, ge=1, le=_MANY)
    patience: int = Field(strict=True, default=8, ge=1, le=_MANY)
    learning_rate: float = Field(strict=True, default=2e-3, gt=0, le=1)
    backbone_learning_rate: float = Field(strict=True, default=2e-5, gt=0, le=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(strict=True, default=1, ge=1, le=1024)
    pictures_every: int = Field(strict=True, default=5, ge=1)
    seed: int = Field(strict=True, default=0, ge=0, lt=2**63)

    @field_validator("transform")
    @classmethod
    def _one_level(cls, value: Wavelet) -> Wavelet:
        if value.levels != 1:
            raise ValueError("the learned rule merges the bands of one level")
        check_mode(value)
        return value

    @model_validator(mode="after")
    def _there_is_something_to_unfreeze(self) -> Self:
        if self.unfreeze != 0 and not self.reads_backbone:
            raise ValueError("there is no backbone to unfreeze: reads_backbone is false")
        return self

    def described(self) -> dict[str, Any]:
        """Return all that decides the result, but of files their names alone.

        Where a file lies says nothing about what is in it, and may name a person.
        """
        options = self.model_dump(mode="json")
        for source in (*options["train"], *options["validation"]):
            for name in _paths_of(source):
                source[name] = Path(source[name]).name
        if _is_file(options["weights"]):
            options["weights"] = Path(options["weights"]).name
        return options


def load_train_config(path: Path, instead: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a training from YAML; paths in it are relative to its folder.

    Parameters
    ----------
    path : Path
        The file. Variables of the environment are put in where paths name them.
    instead : mapping, optional
        Options that win over those of the file, unless they are None.

    Raises
    ------
    ConfigurationError
        If it cannot be read, or says something that cannot be.
    """
    content = read_options(path)
    given = {name: value for name, value in (instead or {}).items() if value is not None}
    if re.fullmatch(r"[0-9]{1,6}", str(given.get("unfreeze", ""))):
        given["unfreeze"] = int(given["unfreeze"])
    content |= given
    try:
        for name in ("train", "validation"):
            sources = content.get(name)
            for source in sources if isinstance(sources, list) else ():
                if isinstance(source, dict):
                    _from_here(source, _paths_of(source), path.parent)
        if _is_file(content.get("weights")):
            _from_here(content, ("weights",), path.parent)
        return TrainConfig.model_validate(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}", error.mend) from error
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explained(error)}") from error


def _paths_of(source: Mapping[str, Any]) -> list[str]:
    """Return which options of a source are paths."""
    names = ["folder", "path", "t1w"]
    if source.get("kind") == "volumes":  # of pictures it says how colours are read
        names.append("pet")
    return [name for name in names if isinstance(source.get(name), str)]


def _is_file(weights: object) -> bool:
    return str(weights).endswith((".safetensors", ".pth"))


def _from_here(options: dict[str, Any], names: Sequence[str], folder: Path) -> None:
    """Let paths begin at a folder, and name the home and variables.

    Raises
    ------
    ConfigurationError
        If a variable has no value.
    """
    for name in names:
        expanded = os.path.expandvars(options[name])
        if unset := re.search(r"\$(\w+|\{[^}]*\})", expanded):
            raise ConfigurationError(
                f"{name}: {options[name]}: the variable {unset[0]} of the environment is not set",
                f"export {unset[0].strip('${}')}=FOLDER",
            )
        try:
            options[name] = str((folder / Path(expanded).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigurationError(f"{name}: {options[name]}: {one_line(error)}") from error
