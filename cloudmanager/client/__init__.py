"""The caller's side: fleets, jobs, files and packages of boards, over one link to the server."""
