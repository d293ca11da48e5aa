"""Jobs with files and packages: contents, transfers, install plans and manifests. No sockets."""
