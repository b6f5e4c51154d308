"""The HTTP API: what is learned, how it goes, and two switches; see docs/api.md."""
