"""SlowMo without a framework: the code that all adapters share."""
