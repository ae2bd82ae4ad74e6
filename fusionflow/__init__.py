"""Fusion of PET/MRI cohorts on Dask clusters."""
