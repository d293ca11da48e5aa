"""Desired state: generations, and rollouts that bring boards to them."""
