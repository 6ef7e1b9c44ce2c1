"""Dagster's face to the world: what is seen outside of runs, reported to the catalogue. No logic of its own."""
