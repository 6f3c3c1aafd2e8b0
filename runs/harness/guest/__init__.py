"""What a recipe's own tests see: loaded into their pytest, inside the sandbox."""
