"""Requests of callers: verbs with their roles, request contexts, job requests, subscriptions."""
