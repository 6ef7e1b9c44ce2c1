"""Side by side with the field's tools, in one interleaved run each: `make bench`, or `python -m benchmarks --help`."""
