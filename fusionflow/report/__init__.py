"""Reports that a browser shows: one self-contained HTML file each, which needs no network."""
