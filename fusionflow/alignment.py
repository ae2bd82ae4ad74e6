"""How a PET is brought onto an MRI: by its voxels, by its header, or by registration."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fusionflow.errors import FusionflowError, GridError
from fusionflow.io.nifti import Volume

Mode: TypeAlias = Literal["none", "header", "rigid", "auto", "in T1w space"]

_IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Alignment:
    """How a PET was brought onto an MRI.

    Attributes
    ----------
    mode : {"none", "header", "rigid", "in T1w space"}
        What was done in the end; never ``auto``.
    matrix : tuple of tuple of float, 4 x 4
        World mm of the PET's header -> world mm of the MRI.
    flagged : bool
        Whether a person should look: registration found what is not to be believed.
    registration : dict or None
        Figures of the registration that was tried, whether it is used or not.
    notes : tuple of str
        What a person should know.
    reason : str
        What was made of the registration, and why; empty where there was none.
    """

    mode: Mode
    matrix: tuple[tuple[float, ...], ...] = _IDENTITY
    flagged: bool = False
    registration: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    reason: str = ""

    def apply(self, uptake: Volume, mri: Volume) -> Volume:
        """Return the PET as it is to be resampled."""
        if self.mode == "none":
            return replace(uptake, affine=mri.affine)
        if self.mode == "rigid":
            from fusionflow.registration import moved

            return moved(uptake, np.array(self.matrix))
        return uptake

    def to_json(self) -> dict[str, Any]:
        """Return it as records have it."""
        return {
            "mode": self.mode,
            "flagged": self.flagged,
            "matrix": [list(row) for row in self.matrix],
            "registration": self.registration,
        }


def registers(mode: Mode) -> bool:
    """Whether a mode looks at voxels; the others need to know only where they lie."""
    return mode in ("rigid", "auto")


def align(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    mri: Volume,
    uptake: Volume,
    head: npt.NDArray[np.uint8],
    mode: Mode,
) -> Alignment:
    """Say how a PET is to be brought onto an MRI.

    Parameters
    ----------
    t1w, pet : path-like
        The files, for messages.
    mri, uptake : Volume
        The images; where the mode registers nothing, their grids will do.
    head : ndarray, (z, y, x) uint8
        Mask on the MRI's grid.
    mode : str
        ``none``: voxel for voxel, whatever the headers say. ``header``: as the headers say.
        ``rigid``: by registration, and an error where that is not to be believed. ``auto``: as the
        headers say where registration agrees with them, else by registration; where that is not to
        be believed, as the headers say, flagged. ``in T1w space``: aligned before.

    Raises
    ------
    GridError
        If the images have other numbers of voxels (``none``), or registration fails (``rigid``).
    """
    if mode == "none":
        if uptake.data.shape != mri.data.shape:
            raise GridError(
                f"registration: none takes voxel for voxel, and {t1w} has {mri.data.shape} voxels, "
                f"{pet} {uptake.data.shape}",
                "Take header, rigid or auto",
            )
        return Alignment("none")
    if not registers(mode):
        return Alignment(mode)
    return _by_registration(t1w, pet, mri, uptake, head, mode)


def _by_registration(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    mri: Volume,
    uptake: Volume,
    head: npt.NDArray[np.uint8],
    mode: Mode,
) -> Alignment:
    from fusionflow.registration import rigid  # SimpleITK takes a while to import
    from fusionflow.registration_quality import disagreement, implausible

    if mode == "auto":
        try:
            verdict = disagreement(uptake, mri, head)
        except FusionflowError as error:
            return Alignment(
                "header",
                flagged=True,
                notes=(f"REGISTRATION could not be tried ({error}): taken as the headers say",),
            )
        figures = asdict(verdict.registration)
        if verdict.verdict == "agrees":
            return Alignment(
                "header", registration=figures, reason=f"the header stands: {verdict.reason}"
            )
        if verdict.verdict == "implausible":
            return Alignment(
                "header",
                flagged=True,
                registration=figures,
                notes=(f"LOOK AT THE ALIGNMENT: {verdict.reason}. Taken as the headers say",),
                reason=f"not to be believed: {verdict.reason}",
            )
        return Alignment(
            "rigid",
            verdict.registration.matrix,
            registration=figures,
            notes=(f"PET: registered to the MRI: {verdict.reason}",),
            reason=f"the header is overruled: {verdict.reason}",
        )
    found = rigid(uptake, mri, head)
    why = implausible(found)
    if why is not None:
        raise GridError(
            f"The registration of {pet} to {t1w} is not to be believed: {why}",
            "Look at both; align them by hand, or take registration: header",
        )
    return Alignment(
        "rigid",
        found.matrix,
        registration=asdict(found),
        notes=(
            f"PET: registered to the MRI, moved by {found.distance_mm:.1f} mm at the centre of the "
            f"head and turned by {found.rotation_deg:.1f} degrees",
        ),
        reason="registration was asked for, and nothing speaks against what it found",
    )
