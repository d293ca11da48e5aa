"""What callers may ask: verbs with their roles, request contexts, job requests, subscriptions."""
