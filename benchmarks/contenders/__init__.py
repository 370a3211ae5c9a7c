"""Contenders measured in one run on a real network: ``python -m benchmarks.contenders --help``."""
