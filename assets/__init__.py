"""Dagster's face to operators: the plan's entries as assets, asset checks, jobs and schedules. No logic of its own."""
