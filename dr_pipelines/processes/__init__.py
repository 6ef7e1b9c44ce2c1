"""Real servers as child processes: unprivileged, on free loopback ports, leased, and always found again."""
