"""The policy types, a room each, and what they share."""
