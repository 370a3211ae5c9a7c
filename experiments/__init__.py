"""Does SlowMo learn better? Tables of trainings on real data: ``python -m experiments TABLE``."""
