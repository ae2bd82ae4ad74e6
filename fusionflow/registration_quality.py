"""Whether a registration is to be believed, and whether it was needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusionflow.io.nifti import Volume
from fusionflow.registration import Mask, Registration, rigid

__all__ = ["Disagreement", "disagreement", "implausible"]

_FARTHEST_MM = 40.0
_FARTHEST_DEG = 30.0
_LEAST_OVERLAP = 0.6
_LEAST_METRIC = 0.05
_RESTART_MM = 5.0
_AGREES_MM = 3.5
_AGREES_DEG = 3.5
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Disagreement:
    """Whether the header of a PET is to be overruled.

    Attributes
    ----------
    verdict : {"agrees", "disagrees", "implausible"}
        ``"agrees"``: the header is good, and the PET stays as it is. ``"disagrees"``: the PET is to
        be moved by the registration. ``"implausible"``: the images disagree, but what was found is
        not to be believed; the PET stays as it is, and a person should look.
    reason : str
        In words, with the figures.
    registration : Registration
        What was found.
    """

    verdict: Literal["agrees", "disagrees", "implausible"]
    reason: str
    registration: Registration


def implausible(registration: Registration) -> str | None:
    """Say why a registration is not to be believed, or None where nothing speaks against it.

    =============================== ==============================================================
    rule                            because
    =============================== ==============================================================
    it did not settle               it ran out of steps at the finest level, or failed
    moved more than 40 mm           one session does not do that to a head; from the start, for
    on average                      where headers miss each other their origins mean nothing
    turned more than 30 degrees     a neck in a head holder does not do that
    less than 0.6 of the head in    what is not seen cannot vouch for what is; mutual information
    the PET's field of view         over a part of the head has maxima that are none
    less than 0.05 nats             so little is shared by images that have nothing in common
    0.01 nats less than before      it climbed at another resolution, away from what is best; not
                                    asked where the header had missed the head
    found again more than 5 mm off  from another start it went elsewhere: a maximum among others
    =============================== ==============================================================

    Parameters
    ----------
    registration : Registration

    Returns
    -------
    str or None
        The first rule that is broken, in words.
    """
    r = registration
    if not r.settled:
        last = r.levels[-1].stop
        return f"it did not settle ({last})"
    if r.from_start_mm > _FARTHEST_MM:
        return f"it moves the head by {r.from_start_mm:.0f} mm, more than {_FARTHEST_MM:g} mm"
    if r.rotation_deg > _FARTHEST_DEG:
        return f"it turns the head by {r.rotation_deg:.0f} degrees, more than {_FARTHEST_DEG:g}"
    if r.overlap < _LEAST_OVERLAP:
        return f"it leaves {r.overlap:.0%} of the head in the PET, less than {_LEAST_OVERLAP:.0%}"
    if r.metric_after < _LEAST_METRIC:
        return (
            f"the images share {r.metric_after:.3f} nats, less than {_LEAST_METRIC:g}: "
            "hardly anything"
        )
    if r.start == "header" and r.metric_after < r.metric_before - _LEAST_GAIN:
        return f"the images share less than before ({r.metric_after:.3f}, {r.metric_before:.3f})"
    if r.restart_mm > _RESTART_MM:
        return f"from another start it ends {r.restart_mm:.1f} mm away, more than {_RESTART_MM:g}"
    return None


def disagreement(pet: Volume, mri: Volume, mask: Mask | None = None) -> Disagreement:
    """Say whether the header of a PET puts it where the MRI is, by registering the two.

    The header is overruled where the registration moves the head by more than 3.5 mm on average or
    turns it by more than 3.5 degrees, and the images share at least 0.01 nats more for it, and
    nothing speaks against it (`implausible`). Otherwise the PET stays exactly as it is.

    Within 3.5 mm, for registration moves pairs that are published as aligned, too: eleven of them
    by 0.4 to 2.7 mm, and rightly as far as their midplanes tell (those lie up to 1.8 mm apart), and
    one by 4.2 mm. Half of what a PET scanner resolves is 3 mm; beyond 4 mm or 4 degrees an error
    shows in a fused image.

    Not for less than 0.01 nats: tracers that show little of the anatomy (of a transporter, of the
    receptors in a few nuclei) share 0.1 to 0.2 nats with it, and their maximum wanders: that one
    gains 0.005 for its 4.2 mm. An error of 4 mm or degrees costs such pairs 0.005 to 0.03, most
    tracers 0.02 to 0.1, and simulated FDG 0.2.

    Parameters
    ----------
    pet, mri : Volume
    mask : ndarray, (z, y, x) uint8, optional
        As in `fusionflow.registration.rigid`, whose errors it raises.

    Returns
    -------
    Disagreement
    """
    r = rigid(pet, mri, mask)
    if r.start == "header":
        apart = f"they are {r.displacement_mm:.1f} mm and {r.rotation_deg:.1f} degrees apart"
        if r.settled and r.displacement_mm <= _AGREES_MM and r.rotation_deg <= _AGREES_DEG:
            return Disagreement("agrees", f"by registration {apart}", r)
        gain = r.metric_after - r.metric_before
        if r.settled and 0 <= gain < _LEAST_GAIN:
            reason = (
                f"by registration {apart}, but that gains {gain:.4f} nats, less than "
                f"{_LEAST_GAIN:g}: no evidence against the header"
            )
            return Disagreement("agrees", reason, r)
    else:
        apart = "the header's field of view misses the head"
    wrong = implausible(r)
    if wrong is not None:
        return Disagreement("implausible", f"by registration {apart}, but {wrong}", r)
    return Disagreement("disagrees", f"by registration {apart}", r)
