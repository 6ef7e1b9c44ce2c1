"""dr_pipelines: recovery that is run and measured, not promised."""

__version__ = "0.1.0"
