"""Which τ, and is it worth it: ``python -m slowmo_hvd.plan``; docs/planner.md has the formulas."""
