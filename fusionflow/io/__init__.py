"""Reading and writing: NIfTI, BIDS, the Zarr store, derivatives."""
