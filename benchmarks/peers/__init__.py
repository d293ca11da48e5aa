"""The peers: each does the same work in the fastest way that its authors offer."""
