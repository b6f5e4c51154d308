"""The dashboard in Python; ``make dashboard`` writes it as JSON."""
