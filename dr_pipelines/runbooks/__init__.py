"""Runbooks as plain functions: executions, their timed steps, and the record that each leaves."""
