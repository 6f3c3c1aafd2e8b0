"""The harness: runs a recipe's tests against one deployment. Knows no Django."""
