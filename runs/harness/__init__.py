"""The harness: runs a recipe's tests against one deployment. Does not import Django."""
