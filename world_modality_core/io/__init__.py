"""Files, the Hub, console commands and their errors."""
