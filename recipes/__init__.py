"""Recipes: what to run, as YAML, and how the built-in model is made."""
