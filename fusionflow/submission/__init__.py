"""Runs as jobs of their own: what is handed to a cluster manager, which starts all the rest."""
