"""The monitor: says when the world isn't what a Prophet foresaw (docs/monitor.md)."""
