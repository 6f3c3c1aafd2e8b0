"""Programs that run alongside a recipe's code. Each is one file, uses only the standard library, and is started by its path."""
