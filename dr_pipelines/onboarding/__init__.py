"""Taking a database of one's own under protection: what `dr init` looks at, proposes and applies.

`survey` looks and changes nothing, `proposal` is pure (facts in, items out), `applying` carries items out.
"""
