"""ARCHITECTURE.md says what the code does."""

import re
from pathlib import Path

from dr_pipelines.runbooks.execution import TRANSITIONS

PAGE = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text()


def test_the_diagram_of_a_steps_states_is_the_table_in_the_code() -> None:
    drawn = {
        (start, event, end)
        for start, end, event in re.findall(r"^    (\S+) --> (\S+): (\S+)$", PAGE, flags=re.MULTILINE)
    }
    coded = {(str(state or "[*]"), str(event), str(end)) for (state, event), end in TRANSITIONS.items()}
    assert drawn == coded


def test_every_file_that_it_leads_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (Path(__file__).parents[1] / target).exists(), target
