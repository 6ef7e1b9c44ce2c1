"""Drills: a runbook carried out against a real copy of a service after a real loss, and measured."""
