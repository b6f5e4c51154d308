"""The published load against the truth in the broker, while everything is killed at random."""
