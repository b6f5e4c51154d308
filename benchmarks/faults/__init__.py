"""Real processes struck at random moments, and an account of every task."""
