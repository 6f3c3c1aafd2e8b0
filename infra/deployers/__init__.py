"""Ways to put a recipe on a machine, and the sandbox in which a recipe's code runs. Knows no Django."""
