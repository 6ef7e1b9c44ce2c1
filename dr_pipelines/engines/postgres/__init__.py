"""PostgreSQL 15 to 18: full backups in parts, the continuous log, restore, verify, validate."""
