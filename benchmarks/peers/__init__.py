"""The yardsticks: each peer does the same work in the leanest way that its authors offer."""
