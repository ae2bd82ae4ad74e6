"""Jobs that schedulers of sites run later."""
