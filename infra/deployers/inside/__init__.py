"""Programs that run where a recipe's code runs. Each is one file of the standard library, started by its path."""
