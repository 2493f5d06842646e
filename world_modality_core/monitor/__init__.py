"""The monitor: says when the world isn't as a Prophet forecast it (docs/monitor.md)."""
