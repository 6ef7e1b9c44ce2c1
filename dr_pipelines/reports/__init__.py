"""What was promised beside what was measured: figures from records, rendered."""
