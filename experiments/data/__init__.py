"""Real data that is fetched, never committed: one module a source."""
