"""The contenders, a family in each module, which has a function ``make(work, setting)``."""
