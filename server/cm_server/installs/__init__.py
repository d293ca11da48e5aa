"""Jobs with files and packages: contents, transfers, install plans, manifests; no sockets."""
