"""The method that people name: ``fusionflow run BIDS OUT --method dwt-gabor``."""

from fusionflow.config import Method, Wavelet

DWT_GABOR = Method(
    name="dwt-gabor",
    transform=Wavelet(name="db2", levels=2),
    rule="l1-vote",
    backbone="gabor",
    taps=("edges", "texture"),
)
