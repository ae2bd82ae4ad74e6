"""The rule: the share of taps at which the MRI is the more active source."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusionflow.fusion import BandPair, Rule


def vote(pair: BandPair) -> npt.NDArray[np.float32]:
    """Return the mean over taps of 1 where the MRI is more active, 0 where the PET is.

    Half a vote where it is a tie.
    """
    votes = np.sign(pair.mri_activity - pair.pet_activity)
    return ((votes.mean(axis=0) + 1) / 2).astype(np.float32)


L1_VOTE = Rule("l1-vote", vote, reads_backbone=True)
