"""SlowMo without a framework: what the adapters must not each decide for themselves."""
