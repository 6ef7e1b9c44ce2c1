"""`python -m dr_pipelines.cli`: the command `dr`."""

from dr_pipelines.cli import main

main()
