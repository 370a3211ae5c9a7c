"""Builds Horovod for the frameworks of the current environment.

The command is `python -m slowmo_hvd.build_horovod`.

Horovod's only release on the package index, the 0.28.1 source archive, no longer builds against
today's frameworks. This package fetches that archive, checks its hash, applies the few edits it
needs (`patches`), builds a wheel for the frameworks that are installed (`environment`, `cuda`,
`wheel`), keeps it in a cache (`cache`), installs it, and checks that it allreduces (`check`).

It runs before anything else is there, so it uses the standard library only, and it never imports a
framework into its own process.
"""
